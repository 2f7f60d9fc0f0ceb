"""A headless Chromium without network, driven by the DevTools protocol over two pipes: no further package."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
SECONDS = 60.0  # for an answer


def find() -> str | None:
    """The program, or None where none is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `complaints`: console errors and warnings, exceptions, and what it asked of the network."""

    def __init__(self, program: str, profile: Path) -> None:
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._rest = b""
        (low_in, self._out), (self._in, low_out) = os.pipe(), os.pipe()
        theirs_in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (low_in, low_out))  # neither 3 nor 4
        flags = [*FLAGS, OFFLINE, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", program, *flags]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **quiet)
        for fd in (low_in, low_out, theirs_in, theirs_out):
            os.close(fd)
        self._session: str | None = None
        self._answers = select.poll()
        self._answers.register(self._in, select.POLLIN)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        away = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.ask("Network.emulateNetworkConditions", **away)

    def ask(self, method: str, **params: Any) -> Any:
        """The answer to a command. Raises RuntimeError for an error, and when none comes."""
        number = next(self._numbers)
        own = {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps({"id": number, "method": method, "params": params, **own}).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._hear(message)

    def open(self, page: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of this size, until it is loaded and painted once."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.as_uri())
        painted = "new Promise(r => { const go = () => requestAnimationFrame(() => setTimeout(r, 0));"
        painted += " document.readyState === 'complete' ? go() : addEventListener('load', go) })"
        while self.run("location.href") != page.as_uri():
            time.sleep(0.02)
        self.run(painted)

    def run(self, expression: str) -> Any:
        """A script's value. Raises RuntimeError when it throws."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.ask("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", str(answer)))
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="none")

    def tap(self, x: float, y: float) -> None:
        self.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str) -> None:
        code = {"Escape": 27, "Tab": 9, "Enter": 13}[name]
        typed = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown" if typed else "rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **typed)

    def picture(self, path: Path, whole: bool = True) -> None:
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        os.close(self._out)  # it ends when its orders end
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def _read(self) -> Any:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready = self._answers.poll(1000 * max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError("the browser ended" if ready else f"no answer within {SECONDS:.0f} s")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _hear(self, message: Any) -> None:
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {params['exceptionDetails']}")
        elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"console: {params['args']}")
        elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"log: {params['entry']['text']}")
        elif kind == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.complaints.append(f"network: {url}")
