"""A headless Chromium that tests steer by its DevTools protocol, through a pipe: no driver and no further package.

Source: https://chromedevtools.github.io/devtools-protocol; `--remote-debugging-pipe` reads commands from file descriptor 3 and
writes answers and events to 4, each a JSON text that ends with a zero byte.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"Tab": 9, "Enter": 13, "Space": 32}
SECONDS = 60.0


class Tab:
    """A tab: opens files, runs JavaScript, presses keys and the mouse. `events` holds what the browser reported meanwhile."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.buffer, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.read, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """Set the size of the window in CSS pixels; a phone also reads the viewport of the page."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + SECONDS
        while self.run("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, f"{path} was not loaded"
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is, in plain JSON values."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that the CSS selector finds, after scrolling to it."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key of KEYS."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        named = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **named)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.send("Input.insertText", text=text)

    def complaints(self) -> list[dict[str, Any]]:
        """Every exception, every message of the console and every entry of the browser's log up to now."""
        self.run("new Promise(done => setTimeout(done, 50))")
        names = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        return [event for event in self.events if event.get("method") in names]

    def requests(self) -> list[str]:
        """The addresses that the tab asked for."""
        return [
            event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"
        ]


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A tab of a Chromium that ends with the context. `profile` is a folder for its files."""
    assert PROGRAM is not None
    ours, theirs = os.pipe(), os.pipe()  # (read, write): commands flow through the first, answers through the second

    def descriptors() -> None:  # in the child: 3 and 4, by way of numbers that cannot be them
        commands, answers = os.dup2(ours[0], 103), os.dup2(theirs[1], 104)
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [PROGRAM, *options, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
    with open(profile.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=descriptors, close_fds=False)
    os.close(ours[0])
    os.close(theirs[1])
    try:
        yield Tab(ours[1], theirs[0])
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours[1])
        os.close(theirs[0])
