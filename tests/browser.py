"""A real browser, headless: Chromium driven over two pipes by the DevTools protocol (JSON that ends with NUL)."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--hide-scrollbars", "--disable-component-update", "--mute-audio",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 60.0


class Browser:
    """One browser with one page. `errors` is all that the page reported in its console, or threw."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        script = f'exec chromium "$@" 3<&{from_us} 4>&{to_us}'  # the protocol's pipes are these two
        command = ["bash", "-c", script, "chromium", *FLAGS, f"--user-data-dir={self.profile}"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(from_us)
        os.close(to_us)
        self._number, self._session, self._rest = 0, "", b""
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the browser with all its processes, and remove its profile: the network's process writes there until it ends."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        deadline = time.monotonic() + TIMEOUT_S
        while self.profile.exists():
            assert time.monotonic() < deadline, f"{self.profile}: something still writes there"
            shutil.rmtree(self.profile, ignore_errors=True)
            time.sleep(0.05)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, url: str) -> None:
        """Load a page, up to its load event."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState == 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (awaited), as a user's click would run it."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.run(f"Promise.resolve({condition}).then(Boolean)"):  # an element by value is {}
            assert time.monotonic() < deadline, f"never: {condition}; console: {self.errors}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key: str, modifiers: int = 0) -> None:
        """A key as a keyboard sends it, by the name that events bear; modifiers: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."""
        code = {
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
            "End": 35,
            "Home": 36,
            "ArrowUp": 38,
            "ArrowDown": 40,
            "ArrowRight": 39,
        }[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def look(self, width: int = 1100, height: int = 900, scheme: str = "light") -> None:
        """The size of the window, and whether its user likes it light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """The page as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], TIMEOUT_S)[0], "the browser does not answer"
            data = os.read(self._in, 2**20)
            assert data, f"the browser ended with status {self._process.wait()}"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        what, about = event.get("method"), event.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(about["entry"]))
        elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
