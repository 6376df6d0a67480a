"""A headless Chromium, driven by its DevTools protocol: open, look, press, tap, take a picture."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import websocket

BINARY: Final = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # root, as in a container, cannot have one; the page is our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
_KEYS: Final = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Delete": 46, "Tab": 9, "Escape": 27}


class Tab:
    """One page of the browser."""

    def __init__(self, connection: Any):
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []

    def send(self, method: str, **params: Any) -> Any:
        """A command and its result; what the page logs as wrong meanwhile is kept in `complaints`."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._connection.recv())
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(told["params"]["entry"]["text"])
            elif told.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"]))

    def value(self, script: str) -> Any:
        """What an expression of the page's is."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, limit_s: float = 8.0) -> None:
        """Wait for an expression to be true."""
        end = time.monotonic() + limit_s
        while not self.value(script):
            seen = self.value("document.body && document.body.innerText")
            assert time.monotonic() < end, f"{script} is not true of: {seen} {self.complaints}"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def screen(self, width: int, height: int, *, touch: bool = False, dark: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str) -> None:
        self.hold(key)
        self.let_go(key)

    def hold(self, key: str, *, again: bool = False) -> None:
        """Press a key and keep it down; `again`: it repeats, as held keys do."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self._key("keyDown", key, **text, autoRepeat=again)

    def let_go(self, key: str) -> None:
        self._key("keyUp", key)

    def _key(self, kind: str, key: str, **more: Any) -> None:
        code = _KEYS.get(key, ord(key[0].upper()))
        self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def click(self, selector: str, text: str | None = None) -> None:
        """Click where the element (the one with this text in it) is drawn, as a finger would."""
        find = f"[...document.querySelectorAll({json.dumps(selector)})]"
        if text is not None:
            find += f".filter((e) => e.innerText.includes({json.dumps(text)}))"
        self.until(f"{find}.length > 0")
        place = (
            f"(() => {{ const e = {find}[0]; e.scrollIntoView({{block: 'nearest'}});"
            " const r = e.getBoundingClientRect();"
            " const x = r.x + r.width / 2, y = r.y + r.height / 2;"
            " return {x, y, hit: e.contains(document.elementFromPoint(x, y))}; })()"
        )
        end = time.monotonic() + 2
        while not (at := self.value(place)).pop("hit"):  # a dialog may be about to open
            assert time.monotonic() < end, f"{selector} {text}: something lies over it"
            time.sleep(0.02)
        self.tap(at["x"], at["y"])

    def tap(self, x: float, y: float) -> None:
        """Click at a place, whatever is there."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, x=x, y=y)

    def text(self, name: str) -> str:
        """What an element shows."""
        shown: str = self.value(f"document.getElementById({json.dumps(name)}).innerText")
        return shown

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


class Chromium:
    """A running browser; `tab` opens a page with cookies and a cache of its own, as on another phone."""

    def __init__(self, connection: Any, port: int):
        self._tab = Tab(connection)
        self._port = port

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """A page that is closed afterwards, so that it asks no node that has ended."""
        context = self._tab.send("Target.createBrowserContext")["browserContextId"]
        target = self._tab.send("Target.createTarget", url="about:blank", browserContextId=context)
        address = f"ws://127.0.0.1:{self._port}/devtools/page/{target['targetId']}"
        connection = websocket.create_connection(address, timeout=15)
        try:
            tab = Tab(connection)
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.send(f"{domain}.enable")
            yield tab
        finally:
            connection.close()
            self._tab.send("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """A browser of its own; everything it started has ended afterwards."""
    assert BINARY is not None
    child = subprocess.Popen(
        [BINARY, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port, path = _debugging(profile / "DevToolsActivePort", child)
        connection = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=15)
        try:
            yield Chromium(connection, port)
        finally:
            connection.close()
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _debugging(file: Path, child: subprocess.Popen[bytes]) -> tuple[int, str]:
    """The port and the path of the DevTools protocol."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert child.poll() is None, f"chromium ended with code {child.returncode}"
        if file.is_file() and len(lines := file.read_text().splitlines()) > 1:
            return int(lines[0]), lines[1]
        time.sleep(0.05)
    raise AssertionError("chromium did not open its debugging port in 20 s")
