"""A browser for tests: Chromium without a window, driven over the two pipes of its DevTools protocol. It ends when they close."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from required import required

from flowstate.errors import Unavailable

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: It reaches for nothing but the page that it is told.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
#: All text of the page, also in shadow trees, as far as it is shown.
TEXT = """
(() => {
  const told = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    if (node.nodeType === Node.ELEMENT_NODE) {
      if (["SCRIPT", "STYLE", "TEMPLATE"].includes(node.tagName)) return "";
      const style = getComputedStyle(node);
      if (style.display === "none" || style.visibility === "hidden") return "";
    }
    const inner = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].map(told).join("");
    return node.nodeType === Node.ELEMENT_NODE && getComputedStyle(node).display !== "inline" ? "\\n" + inner + "\\n" : inner;
  };
  return document.body === null ? "" : told(document.body).replace(/[ \\t\\u00a0]+/g, " ").replace(/\\s*\\n\\s*/g, "\\n").trim();
})()
"""


def program() -> str | None:
    """Where the browser is."""
    return next((found for each in NAMES if (found := shutil.which(each))), None)


def missing() -> str | None:
    if program() is None and not _may_install():
        return "no browser is here; install Chromium (Debian: apt-get install chromium) to run this"
    return None


def _may_install() -> bool:
    """On CI, whose machines are made for one run: nowhere else is anything installed."""
    return bool(os.environ.get("CI")) and os.geteuid() == 0 and shutil.which("apt-get") is not None


def fetch() -> None:
    """Debian's Chromium, if there is no browser yet. Unavailable if it cannot be had."""
    with (Path(tempfile.gettempdir()) / "flowstate-browser.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that test, one installs
        if program() is not None:
            return
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        for command in (["update", "-qq"], install):
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
            if done.returncode:
                raise Unavailable(f"Chromium could not be installed: {done.stderr[-500:]}")


def fetch_on_ci() -> None:
    if missing() is None:
        fetch()


def browser_required() -> None:
    """Without one a test is skipped, and says how to get one; on CI it fails. (Tests have the mark ``browser``, so that it is there when
    the first of them begins.)"""
    required(missing, fetch)


class Browser:
    """Opened for some pages, one after the other or side by side; thread safe it is not."""

    def __init__(self) -> None:
        found = program()
        if found is None:
            raise Unavailable(str(missing()))
        self._folder = tempfile.TemporaryDirectory(prefix="flowstate-browser-", ignore_cleanup_errors=True)
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # The protocol is spoken on the descriptors 3 and 4.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, found, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._number, self._heard = 0, b""
        self.complaints: list[str] = []  # uncaught errors of pages, and what they wrote as an error

    def call(self, method: str, session: str | None = None, timeout: float = 60.0, **parameters: Any) -> Any:
        """One command of the protocol and its answer. AssertionError if it is refused, or does not come."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._hear(deadline, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and event["params"]["type"] == "error":
            said = [str(each.get("value", each.get("description"))) for each in event["params"]["args"]]
            self.complaints.append(" ".join(said))

    def _hear(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._heard:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser did not answer {method}"
            data = os.read(self._from, 1 << 20)
            assert data, f"the browser ended before it answered {method}"
            self._heard += data
        message, _, self._heard = self._heard.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A page in a context of its own: no cookie, no storage of another. It is loading."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"], target)
        page.call("Page.enable")
        page.call("Runtime.enable")
        page.resize(width, height)
        if dark:
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        page.go(url)
        return page

    def close(self) -> None:
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._folder.cleanup()


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self._session, self._target = browser, session, target

    def call(self, method: str, **parameters: Any) -> Any:
        return self.browser.call(method, self._session, **parameters)

    def go(self, url: str) -> None:
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height}
        self.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. AssertionError if it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def text(self) -> str:
        """What is shown, as lines."""
        return str(self.run(TEXT) or "")

    def shows(self, text: str, seconds: float = 60.0) -> str:
        """Waits until `text` is shown; the whole text then."""
        deadline = time.monotonic() + seconds
        while text not in (found := self.text()):
            assert time.monotonic() < deadline, f"{text!r} did not come within {seconds} s; there is: {found}"
            time.sleep(0.05)
        return found

    def press(self, key: str) -> None:
        """A key by its name (``Tab``, ``Enter``, ``a``), as from a keyboard."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}
        pressed = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key.upper()) if len(key) == 1 else 0)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, path: Path) -> Path:
        """A PNG of what is seen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self._target)


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """A browser, until the end of the block."""
    browser_required()
    browser = Browser()
    try:
        yield browser
    finally:
        browser.close()
