"""A real Chromium, spoken to over its DevTools pipe: no driver and no web socket is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..required import part

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe", "--hide-scrollbars",
]  # fmt: skip
PATIENCE_S = 60.0
ABOVE = 10  # descriptors of ours lie above 3 and 4, which are the pipe's at the other side


class Page:
    """One page of the browser. `console`: what it has written there, and what its policy has refused."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._number = 0
        self._read = b""
        self._session: str | None = None
        self.console: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            found = self._message(give_up_s)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            if found.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(found["params"]))

    def _message(self, give_up_s: float) -> Any:
        while b"\0" not in self._read:
            readable, _, _ = select.select([self._from], [], [], max(0.0, give_up_s - time.monotonic()))
            assert readable, "the browser says nothing"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._read += chunk
        one, _, self._read = self._read.partition(b"\0")
        return json.loads(one)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")

    def look_like(self, width: int, height: int, dark: bool = False) -> None:
        """A window of that size; below 600 pixels it is a phone's."""
        is_phone = width < 600
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        give_up_s = time.monotonic() + PATIENCE_S
        while not self.ask(expression):
            assert time.monotonic() < give_up_s, (expression, self.ask("document.body.innerText"))
            time.sleep(0.05)

    def picture(self, path: Path) -> None:
        """The whole page, as a PNG."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A Chromium whose profile lies in `folder`; its processes end with the block."""
    binary = part("chromium", next(filter(None, map(shutil.which, NAMES)), None))
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
    actions.append((os.POSIX_SPAWN_OPEN, 2, str(folder / "log"), os.O_WRONLY | os.O_CREAT, 0o600))
    command = [binary, *FLAGS, f"--user-data-dir={folder}"]
    pid = os.posix_spawn(binary, command, os.environ, file_actions=actions, setpgroup=0)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(ours_out, ours_in)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, ABOVE) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
