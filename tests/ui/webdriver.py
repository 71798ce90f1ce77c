"""Chromium by the W3C WebDriver protocol, spoken with the standard library."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"


class Browser:
    """One headless window."""

    def __init__(
        self, width: int = 1366, height: int = 800, *, dark: bool = False, phone: bool = False
    ) -> None:
        self._driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self._driver.stdout
        for line in self._driver.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                break
        self._base = f"http://127.0.0.1:{found[1]}"
        options: dict[str, Any] = {
            "binary": CHROMIUM,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--window-size={width},{height}",
                *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []),
            ],
        }
        if phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        self._path = f"/session/{self.call('POST', '/session', {'capabilities': capabilities})['sessionId']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:500]) from None

    def close(self) -> None:
        self.call("DELETE", self._path)
        self._driver.terminate()
        self._driver.wait()

    def open(self, url: str) -> None:
        self.call("POST", self._path + "/url", {"url": url})

    def reload(self) -> None:
        self.call("POST", self._path + "/refresh", {})

    def script(self, code: str, *arguments: object) -> Any:
        return self.call("POST", self._path + "/execute/sync", {"script": code, "args": list(arguments)})

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def wait(self, code: str, seconds: float = 20) -> Any:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.script(f"return {code}")):
            assert time.monotonic() < deadline, f"never: {code}; page says {self.text('body')[:600]}"
            time.sleep(0.03)
        return value

    def keys(self, text: str) -> None:
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keys", "actions": actions})

    def drag(self, source: str, target: str) -> None:
        self._show(source)

        def at(selector: str) -> dict[str, Any]:
            origin = {ELEMENT: self._find(selector)}
            return {"type": "pointerMove", "duration": 80, "origin": origin, "x": 0, "y": 0}

        moves = [
            at(source),
            {"type": "pointerDown", "button": 0},
            at(target),
            at(target),
            {"type": "pointerUp", "button": 0},
        ]
        self._act(
            {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        )

    def click(self, selector: str) -> None:
        self._show(selector)
        self.call("POST", f"{self._path}/element/{self._find(selector)}/click", {})

    def new_tab(self) -> str:
        handle = self.call("POST", self._path + "/window/new", {"type": "tab"})["handle"]
        self.switch(handle)
        return str(handle)

    def tab(self) -> str:
        return str(self.call("GET", self._path + "/window"))

    def switch(self, handle: str) -> None:
        self.call("POST", self._path + "/window", {"handle": handle})

    def screenshot(self, path: Path | str) -> None:
        Path(path).write_bytes(base64.b64decode(self.call("GET", self._path + "/screenshot")))

    def log(self) -> list[dict[str, Any]]:
        """What the console complained about."""
        return list(self.call("POST", self._path + "/se/log", {"type": "browser"}))

    def _show(self, selector: str) -> None:
        self.script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)

    def _find(self, selector: str) -> str:
        found = self.call("POST", self._path + "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def _act(self, source: dict[str, Any]) -> None:
        self.call("POST", self._path + "/actions", {"actions": [source]})
