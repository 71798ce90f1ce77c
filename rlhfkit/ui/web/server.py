"""Serve the ranking page to one browser on this machine.

Who may talk to it: 127.0.0.1 alone; requests whose Host is this very address (a foreign name that resolves
here is DNS rebinding); requests that no other origin sent; browsers that came with the one-time token of the
link and hold the cookie that it was exchanged for. Writes must be JSON, which no foreign form can send
without asking first, and asking (CORS) is never granted. Every violation is 403.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict
from hmac import compare_digest
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rlhfkit.errors import CannotCreate, RlhfkitError
from rlhfkit.ui.ranking_session import FLAGS, MOST_SECONDS, Answer, Conflict, Refused, Session, Shown, Turns

ADDRESS = "127.0.0.1"
MOST_BYTES = 256 * 1024
#: Seconds without a byte after which a connection is dropped.
SILENCE = 30

_PAGES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/markdown.js": ("markdown.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_PLAIN = "text/plain; charset=utf-8"
_USED = (
    "This link was used before, or is not the one that rank printed. "
    "Go on in the tab that has the page, or start rank again: nothing is lost."
)
_READS = ("/api/item",)
_FINISH = "/api/finish"
_WRITES = ("/api/decision", _FINISH)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RankingServer(ThreadingHTTPServer):
    """Runs in a thread of its own from `start` to `stop`; `finished` is set when the person is done."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, session: Session, port: int = 0) -> None:
        """Listen at once; port 0 takes a free one. Raises CannotCreate (73) when the port is taken."""
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CannotCreate(f"cannot listen on port {port}: {reason}", where="--port") from error
        self.session = session
        self.finished = threading.Event()
        self.failure: RlhfkitError | None = None
        self.cookie = f"rlhfkit-{self.server_port}"  # cookies do not tell ports apart
        self.secret = secrets.token_urlsafe(32)
        self._token: str | None = secrets.token_urlsafe(32)
        self._mutex = threading.Lock()
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}
        self.url = f"http://{ADDRESS}:{self.server_port}/?token={self._token}"

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()

    def redeem(self, token: str) -> bool:
        """Whether this is the token of the link, used for the first time."""
        with self._mutex:
            good = self._token is not None and compare_digest(token.encode(), self._token.encode())
            if good:
                self._token = None
            return good

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection broke: nothing to tell, the page asks again."""


class _Reply(Exception):
    """What to send; ends the handling of a request from wherever it is raised."""

    def __init__(
        self, status: HTTPStatus, data: bytes, kind: str = _PLAIN, more: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.data, self.kind, self.more = status, data, kind, more or {}


def _refusal(status: HTTPStatus, reason: str) -> _Reply:
    return _Reply(status, reason.encode() + b"\n")


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> _Reply:
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return _Reply(status, data, "application/json")


class _Handler(BaseHTTPRequestHandler):
    server: RankingServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rlhfkit", ""
    timeout = SILENCE

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: standard error belongs to the command."""

    def do_GET(self) -> None:
        """Answer."""
        try:
            reply = self._reply()
        except _Reply as refusal:
            reply = refusal
        except Refused as error:
            reply = _json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except RlhfkitError as error:  # the disk is full: the page keeps the answer and says so
            reply = _json({"error": str(error)}, HTTPStatus.INSUFFICIENT_STORAGE)
        self._send(reply)
        if self.path == _FINISH and reply.status == HTTPStatus.OK:
            self.wfile.flush()
            self.server.finished.set()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = do_GET

    def _reply(self) -> _Reply:
        try:
            address = urlsplit(self.path)
            query = parse_qs(address.query)
        except ValueError:
            return _refusal(HTTPStatus.BAD_REQUEST, "bad address")
        self._check_sender(address.netloc)
        if self.command == "GET" and address.path == "/" and "token" in query:
            return self._redeem(query["token"][0])
        if not self._has_cookie():
            return _refusal(HTTPStatus.FORBIDDEN, "open the link that rank printed")
        method = "GET" if address.path in (*_PAGES, *_READS) else "POST"
        if method == "POST" and address.path not in _WRITES:
            return _refusal(HTTPStatus.NOT_FOUND, "not found")
        if self.command != method:
            return _Reply(HTTPStatus.METHOD_NOT_ALLOWED, b"not allowed\n", _PLAIN, {"Allow": method})
        if address.path in _PAGES:
            name, kind = _PAGES[address.path]
            return _Reply(HTTPStatus.OK, files(__package__).joinpath(name).read_bytes(), kind)
        if method == "GET":
            return self._item(query)
        body = self._body()
        return _json({}) if address.path == _FINISH else self._decide(body)

    def _send(self, reply: _Reply) -> None:
        if reply.status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # a body may be left that nobody reads
        self.send_response(reply.status)
        length = str(len(reply.data))
        headers = {**_HEADERS, "Content-Type": reply.kind, "Content-Length": length, **reply.more}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.data)

    # -- who asks ------------------------------------------------------------------------------------------

    def _check_sender(self, netloc: str) -> None:
        """Raise the refusal of a request that another page, or another name of this machine, sent."""
        hosts = self.headers.get_all("Host", [])
        if netloc or len(hosts) != 1 or hosts[0].strip().lower() not in self.server.hosts:
            raise _refusal(HTTPStatus.FORBIDDEN, "wrong Host")
        own = f"http://{hosts[0].strip().lower()}"
        origins = self.headers.get_all("Origin", [])
        reads = self.command in ("GET", "HEAD")
        if any(origin != own for origin in origins) or not (origins or reads):
            raise _refusal(HTTPStatus.FORBIDDEN, "wrong Origin")
        # Other ports of this machine are the same site, but not us. A link that is followed is harmless.
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        followed = reads and self.headers.get("Sec-Fetch-Mode") == "navigate"
        if site not in ("same-origin", "none") and not followed:
            raise _refusal(HTTPStatus.FORBIDDEN, "another site asks")

    def _redeem(self, token: str) -> _Reply:
        more = {"Location": "/"}
        if self.server.redeem(token):
            attributes = "Path=/; HttpOnly; SameSite=Strict"
            more["Set-Cookie"] = f"{self.server.cookie}={self.server.secret}; {attributes}"
        elif not self._has_cookie():
            return _refusal(HTTPStatus.FORBIDDEN, _USED)
        return _Reply(HTTPStatus.SEE_OTHER, b"", _PLAIN, more)

    def _has_cookie(self) -> bool:
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return morsel is not None and compare_digest(morsel.value.encode(), self.server.secret.encode())

    def _body(self) -> dict[str, Any]:
        kinds = self.headers.get_all("Content-Type", [])
        if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != "application/json":
            raise _refusal(HTTPStatus.FORBIDDEN, "only JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
        if len(length) > 9 or int(length) > MOST_BYTES:
            raise _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too large")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused("not JSON") from None
        if not isinstance(body, dict):
            raise Refused("not a JSON object")
        return body

    # -- what is asked -------------------------------------------------------------------------------------

    def _item(self, query: Mapping[str, list[str]]) -> _Reply:
        session = self.server.session
        return self._state(session.show(query["key"][0]) if "key" in query else session.next())

    def _decide(self, body: dict[str, Any]) -> _Reply:
        session = self.server.session
        key, version, identity = body.get("item"), body.get("version"), body.get("decision")
        if not isinstance(key, str) or type(version) is not int:
            raise Refused("item and version are needed")
        if not isinstance(identity, str) or not identity.isascii() or not 8 <= len(identity) <= 64:
            raise Refused("decision: 8 to 64 ASCII characters")
        status = HTTPStatus.OK
        try:
            session.decide(key, version, identity, _answer(body))
        except Conflict:
            status = HTTPStatus.CONFLICT
        return self._state(session.next(), status)

    def _state(self, shown: Shown | None, status: HTTPStatus = HTTPStatus.OK) -> _Reply:
        session = self.server.session
        count = session.count()
        state = {
            "rater": session.rater,
            "ranked": count.ranked,
            "skipped": count.skipped,
            "total": count.total,
            "flags": FLAGS,
            "previous": session.before(shown.item.key if shown and shown.answer else None),
            "item": shown
            and {
                "key": shown.item.key,
                "version": shown.version,
                "prompt": _turns(shown.item.prompt),
                "completions": [_turns(turns) for turns in shown.completions],
                "answer": shown.answer and asdict(shown.answer),
            },
        }
        return _json(state, status)


def _turns(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "text": text} for role, text in turns]


def _answer(body: dict[str, Any]) -> Answer:
    """The answer in a request, its shape checked. Raises Refused."""
    tiers, seconds, note = body.get("tiers"), body.get("seconds", 0.0), body.get("note", "")
    flags, ratings = body.get("flags", []), body.get("ratings", [])
    if tiers is not None and not (
        isinstance(tiers, list)
        and all(isinstance(tier, list) and all(type(place) is int for place in tier) for tier in tiers)
    ):
        raise Refused("tiers: lists of places")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise Refused("seconds: a number")
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise Refused("flags: a list of strings")
    if not isinstance(ratings, list) or not all(rating is None or type(rating) is int for rating in ratings):
        raise Refused("ratings: a list of whole numbers and nulls")
    if not isinstance(note, str):
        raise Refused("note: a string")
    try:
        note.encode()
    except UnicodeEncodeError:
        raise Refused("note: not Unicode text") from None
    return Answer(tiers, float(min(seconds, MOST_SECONDS)), tuple(flags), tuple(ratings), note)
