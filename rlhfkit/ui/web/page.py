"""Show the page until the person has finished."""

from __future__ import annotations

import os
import sys
import webbrowser

from rlhfkit.context import note
from rlhfkit.ui.ranking_session import Session
from rlhfkit.ui.web.server import RankingServer


def rank_on_page(session: Session, *, port: int = 0, browser: bool = True) -> None:
    """Serve `session` on 127.0.0.1 until its page says that the person is done."""
    server = RankingServer(session, port)
    server.start()
    try:
        note(f"rank as {session.rater} at {server.url}")
        if browser and _has_screen():
            webbrowser.open(server.url)
        server.finished.wait()
    finally:
        server.stop()


def _has_screen() -> bool:
    """Whether a browser would open a window, rather than take over this terminal."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in screens)
