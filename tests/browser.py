"""A headless Chromium, driven through the DevTools protocol over two pipes: no driver, no port, no dependency.

Knows the protocol's few methods that tests need. Does not know what page is looked at.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

WAIT = 120.0
"""Seconds after which a test gives up waiting: generous, because other work may share the machine."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe", "about:blank"),
)
# The browser reads commands from descriptor 3 and writes to 4; a Popen alone cannot give a child these numbers.
_START = """
import os, sys
commands, replies, *command = sys.argv[1:]
commands, replies = (os.dup(int(n)) for n in (commands, replies))
while commands in (3, 4): commands = os.dup(commands)
while replies in (3, 4): replies = os.dup(replies)
os.dup2(commands, 3); os.dup2(replies, 4)
os.execv(command[0], command)
"""
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
SHIFT, CONTROL = 8, 2
"""Modifiers of a key, as the protocol numbers them."""


def installed() -> str:
    """Return the path of a Chromium; skip the test where none is."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(_NAMES)} is on the PATH")
    return found


class Browser:
    """One browser process with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        command = [installed(), f"--user-data-dir={profile}", *_FLAGS]
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._held = b""
        self._last = 0
        self.pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._out)  # the end of its commands ends it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def call(self, method: str, session: str | None = None, **fields: Any) -> Any:
        """Give one command; return its result when it is done. Events that come before it go to their page."""
        number = self.send(method, session, **fields)
        while (reply := self._next()).get("id") != number:
            self._told(reply)
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    def send(self, method: str, session: str | None = None, **fields: Any) -> int:
        """Give one command without waiting for it; return its number."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": fields} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        return self._last

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + WAIT
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {WAIT} s"
            part = os.read(self._in, 1 << 20)
            assert part, f"the browser ended with exit code {self._process.wait()}"
            self._held += part
        first, self._held = self._held.split(b"\0", 1)
        return json.loads(first)  # type: ignore[no-any-return]

    def _told(self, event: dict[str, Any]) -> None:
        page = self.pages.get(event.get("sessionId", ""))
        if page is not None and "method" in event:
            page.told(event["method"], event["params"])

    def page(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open an empty page of a size in CSS pixels, in one of the two themes."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        made = self.pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log", "Network"):
            made.call(f"{domain}.enable")
        made.call("Emulation.setFocusEmulationEnabled", enabled=True)
        made.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        made.media(dark=dark)
        return made


class Page:
    """One page, and what its console said."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.console: list[str] = []
        """Errors and warnings, in order."""
        self.dialogs = 0
        """That asked for a name and a password; see `count_dialogs`."""

    def told(self, method: str, fields: dict[str, Any]) -> None:
        """Take an event."""
        if method == "Runtime.exceptionThrown":
            details = fields["exceptionDetails"]
            self.console.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and fields["type"] in ("error", "warning", "assert"):
            self.console.append(str([value.get("value") for value in fields["args"]]))
        elif method == "Log.entryAdded" and fields["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{fields['entry']['text']} {fields['entry'].get('url', '')}")
        elif method == "Fetch.requestPaused":
            self._browser.send("Fetch.continueRequest", self._session, requestId=fields["requestId"])
        elif method == "Fetch.authRequired":
            self.dialogs += 1
            answer = {"response": "CancelAuth"}
            self._browser.send(
                "Fetch.continueWithAuth", self._session, requestId=fields["requestId"], authChallengeResponse=answer
            )

    def call(self, method: str, **fields: Any) -> Any:
        """Give this page one command; return its result."""
        return self._browser.call(method, self._session, **fields)

    def media(self, *, dark: bool = False, kind: str = "screen") -> None:
        """Set the theme, and the screen or paper."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def allow(self, *permissions: str) -> None:
        """Grant what a user would be asked for."""
        self._browser.call("Browser.grantPermissions", permissions=list(permissions), browserContextId=self._context)

    def count_dialogs(self) -> None:
        """Close each dialog that asks for a name and a password, as a user does who has none, and count them."""
        self.call("Fetch.enable", handleAuthRequests=True)

    def before(self, script: str) -> None:
        """Run a script before those of every document that is opened from now on."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str) -> None:
        """Open an address, and wait until it is loaded."""
        assert "errorText" not in self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def fill(self, **fields: Any) -> None:
        """Write into fields or choose in them, by their ids."""
        for name, value in fields.items():
            at = f"document.getElementById({json.dumps(name)})"
            self.value(f"{at}.value = {json.dumps(str(value))}; {at}.dispatchEvent(new Event('change'))")

    def click(self, name: str) -> None:
        """Click what has an id."""
        self.value(f"document.getElementById({json.dumps(name)}).click()")

    def text(self, name: str) -> str:
        """Return the text of what has an id."""
        return str(self.value(f"document.getElementById({json.dumps(name)}).textContent"))

    def value(self, expression: str) -> Any:
        """Return an expression's value, or what its promise gives; as a user's action, where that matters."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        reply = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in reply, (expression[:200], reply["exceptionDetails"])
        return reply["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + WAIT
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"waited {WAIT} s for {expression}"
            time.sleep(0.02)
        return value

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key and let it go."""
        fields: dict[str, Any] = {"key": key, "code": key, "modifiers": modifiers, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        typed = {} if text is None or modifiers else {"text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **fields, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page, all of it or what the window shows."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close the page with all that belongs to it."""
        del self._browser.pages[self._session]
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)
