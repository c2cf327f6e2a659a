"""Headless Chromium for tests, by chromedriver and the W3C WebDriver protocol (https://www.w3.org/TR/webdriver2)."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="there is no browser: apt install chromium chromium-driver",
)
_PATIENCE = 60.0  # seconds for one command
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of a reference to an element


class Browser:
    """A window of Chromium.

    Args:
        url: of the session.
    """

    def __init__(self, url):
        self._url = url

    def open(self, url):
        self._send("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """The value that a script returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        """The elements of a CSS selector."""
        return self._send("POST", "/elements", {"using": "css selector", "value": selector})

    def type(self, element, text):
        """Send keys to an element; a path to a file input."""
        self._send("POST", f"/element/{element[_ELEMENT]}/value", {"text": text})

    def click(self, element):
        self._send("POST", f"/element/{element[_ELEMENT]}/click", {})

    def drag(self, start, end):
        """Press the mouse at a point of the window, move to another, and release; points are (x, y) in pixels."""

        def move(point, duration):
            return {"type": "pointerMove", "duration": duration, "x": round(point[0]), "y": round(point[1])}

        steps = [
            move(start, 0),
            {"type": "pointerDown", "button": 0},
            move(end, 100),
            {"type": "pointerUp", "button": 0},
        ]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": steps}
        self._send("POST", "/actions", {"actions": [pointer]})

    def screenshot(self):
        """PNG of the window."""
        return base64.b64decode(self._send("GET", "/screenshot"))

    def until(self, script, seconds=_PATIENCE):
        """Wait until a script returns something that is true; returns it."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"it has not happened: {script}"
            time.sleep(0.1)
        return found

    def close(self):
        self._send("DELETE", "")

    def _send(self, method, path, content=None):
        return send(method, self._url + path, content)


def send(method, url, content=None):
    """One command of the protocol."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        return json.load(answer)["value"]


@contextlib.contextmanager
def browser(folder, size=(900, 700)):
    """A browser with a profile of its own in a folder, within the block."""
    options = {
        "binary": CHROMIUM,
        "args": [
            "--headless=new",
            "--no-sandbox",  # which root, as in a container, can't have
            "--disable-dev-shm-usage",
            "--disable-gpu",
            f"--window-size={size[0]},{size[1]}",
            f"--user-data-dir={folder}",
        ],
    }
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        try:
            port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
            url = f"http://127.0.0.1:{port}/session"
            window = Browser(f"{url}/{send('POST', url, wanted)['sessionId']}")
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
