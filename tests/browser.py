"""A headless browser for pages that the repository makes: Chromium, by PyQt6-WebEngine, in a process of its own.

    with Browser() as browser:
        browser.open(path_or_url, width=390)
        browser.evaluate("document.title")
        assert browser.overflowing() == []
        browser.screenshot("page.png")

Qt ends its process when Chromium cannot start, and its event loop gets on badly with others: hence the process, which
`python tests/browser.py` is. It reads and answers lines of JSON. The package is large and no part of the test extra:
`pip install PyQt6-WebEngine`. Where it is missing, Browser() raises BrowserUnavailable and the fixture `browser` skips.
"""

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

SECONDS = 240.0  # that an answer may take
HEIGHT = 900  # of the window, in pixels
TALLEST = 8000  # screenshots end here: the longest pages would take a gigabyte
# Chromium refuses to run as root in its sandbox, which containers often are; the pages are our own.
ENVIRONMENT = {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu"}

# What is wider than the window, or than a box around it, with no scroll bar to reach the rest. Boxes that cut off what
# is too wide count as too narrow, too: a column that cannot be seen is what this looks for.
OVERFLOWING = r"""
(() => {
  const style = e => getComputedStyle(e), scrolls = e => /auto|scroll/.test(style(e).overflowX);
  const window_width = document.documentElement.clientWidth, slack = 1.5;
  const selector = e => {
    const path = [];
    for (; e && e !== document.body; e = e.parentElement) {
      if (e.id) { path.unshift('#' + CSS.escape(e.id)); break; }
      const same = [...e.parentElement.children].filter(other => other.tagName === e.tagName);
      path.unshift(e.tagName.toLowerCase() + (same.length > 1 ? `:nth-of-type(${same.indexOf(e) + 1})` : ''));
    }
    return path.join(' > ');
  };
  const sticks_out = e => {
    let {left, right, width, height} = e.getBoundingClientRect();
    const shown = e.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!shown || width < 1 || height < 1 || right <= 0) return false;
    if (style(e).display === 'inline') right -= parseFloat(style(e).paddingRight);  // hangs over where a line is full
    if (!scrolls(e) && style(e).display !== 'inline' && e.scrollWidth > e.clientWidth + slack) return true;
    let out_left = 0, out_right = 0;  // by negative margins, which are meant
    for (let child = e, box = e.parentElement; box && box !== document.body; child = box, box = box.parentElement) {
      out_left -= Math.min(0, parseFloat(style(child).marginLeft) || 0);
      out_right -= Math.min(0, parseFloat(style(child).marginRight) || 0);
      if (/inline$|contents/.test(style(box).display)) continue;
      const edge = box.getBoundingClientRect();
      if (scrolls(box)) {
        ({left, right} = edge);
        out_left = out_right = 0;
      } else {
        const meant = style(box).overflowX === 'visible' ? 1 : 0;
        if (right > edge.right + meant * out_right + slack || left < edge.left - meant * out_left - slack) return true;
      }
    }
    return right > window_width + slack || left < -slack;
  };
  const found = [...document.querySelectorAll('table, pre, code, img, svg, canvas, video, math, iframe')];
  return found.filter(sticks_out).map(selector);
})()
"""


class BrowserUnavailable(RuntimeError):
    """The package is missing, or Chromium does not start here."""


class Browser:
    """One window; close() or the end of a with statement ends its process."""

    def __init__(self):
        if not (importlib.util.find_spec("PyQt6") and importlib.util.find_spec("PyQt6.QtWebEngineWidgets")):
            raise BrowserUnavailable("PyQt6-WebEngine is not installed")
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=ENVIRONMENT | os.environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._ask("evaluate", "1")
        except RuntimeError as error:
            self.close()
            raise BrowserUnavailable("Chromium does not start here: a library of the system may be missing") from error

    def open(self, url: str | Path, width: int = 1280) -> None:
        """Load a page in a window of `width` pixels, with its pictures and fonts."""
        text = str(url)
        self._ask("open", text if "://" in text else Path(text).resolve().as_uri(), width)

    def evaluate(self, javascript: str):
        """The value of an expression in the page, as JSON has it; RuntimeError where it throws."""
        return self._ask("evaluate", javascript)

    def wait_for(self, javascript: str, seconds: float = 10.0) -> None:
        """Return when the expression holds; TimeoutError where it does not become true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({javascript})"):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds:g} s: {javascript}")
            time.sleep(0.05)

    def screenshot(self, path: str | Path, full_page: bool = True) -> None:
        """Write a PNG: the whole page (its first 8,000 pixels), or what the window shows."""
        self._ask("screenshot", str(Path(path).resolve()), full_page)

    def overflowing(self) -> list[str]:
        """Selectors of the tables, code, formulas and pictures that are too wide and cannot be scrolled."""
        return self.evaluate(OVERFLOWING)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _listen(self):
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put({"error": "the browser's process has ended"})

    def _ask(self, *request):
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=SECONDS)
        except (OSError, ValueError, queue.Empty) as error:
            self._process.kill()  # a later answer must not be taken for that of a later question
            raise RuntimeError(f"the browser does not answer {request[0]!r}") from error
        if "error" in answer:
            raise RuntimeError(f"{request[0]}: {answer['error']}")
        return answer["value"]


class _Window:
    """The other side, in the process of its own."""

    def __init__(self):
        from PyQt6.QtWebEngineCore import QWebEngineSettings
        from PyQt6.QtWebEngineWidgets import QWebEngineView
        from PyQt6.QtWidgets import QApplication

        self.application = QApplication(["browser"])
        self.view = QWebEngineView()
        # as on a telephone, where bars lie above the page and take no room
        self.view.settings().setAttribute(QWebEngineSettings.WebAttribute.ShowScrollBars, False)
        self.view.resize(1280, HEIGHT)
        self.view.show()

    def open(self, url: str, width: int) -> None:
        from PyQt6.QtCore import QUrl

        loaded = []
        self.view.resize(width, HEIGHT)
        connection = self.view.loadFinished.connect(loaded.append)
        self.view.load(QUrl(url))
        self.wait(lambda: loaded)
        self.view.loadFinished.disconnect(connection)
        if not loaded[0]:
            raise RuntimeError(f"{url} cannot be loaded")
        self.settle("[...document.images].every(image => image.complete || image.loading === 'lazy')")

    def evaluate(self, javascript: str):
        answers = []
        source = (
            "(() => { try { return JSON.stringify({value: eval(%s) ?? null}) }"
            " catch (error) { return JSON.stringify({error: String(error)}) } })()"
        )
        self.view.page().runJavaScript(source % json.dumps(javascript), answers.append)
        self.wait(lambda: answers)
        answer = json.loads(answers[0])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def screenshot(self, path: str, full_page: bool) -> None:
        size = self.view.size()
        if full_page:
            height = self.evaluate("Math.max(document.documentElement.scrollHeight, document.body.scrollHeight)")
            self.view.resize(size.width(), min(max(int(height), 1), TALLEST))
        self.settle("[...document.images].every(image => image.complete)")
        saved = self.view.grab().save(path, "PNG")
        self.view.resize(size)
        if not saved:
            raise RuntimeError(f"{path} cannot be written")

    def settle(self, pictures: str) -> None:
        """Wait for pictures, fonts and two frames, so that what was laid out last is drawn."""
        with contextlib.suppress(TimeoutError):  # a picture that is missing is the page's fault, and is to be seen
            self.wait(lambda: self.evaluate(f"{pictures} && document.fonts.status === 'loaded'"), 10)
        self.evaluate(
            "window.frames_drawn = 0; requestAnimationFrame(() => requestAnimationFrame(() => frames_drawn = 1))"
        )
        self.wait(lambda: self.evaluate("window.frames_drawn"))
        end = time.monotonic() + 0.2  # from the page's frame to the window's
        self.wait(lambda: time.monotonic() > end)

    def wait(self, condition, seconds: float = SECONDS / 2) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("the page does not answer")
            self.application.processEvents()
            time.sleep(0.005)

    def serve(self) -> None:
        """Answer each line of standard input until it ends; the page goes on living in between."""
        lines: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=_read, args=(lines,), daemon=True).start()
        while True:
            self.application.processEvents()
            with contextlib.suppress(queue.Empty):
                if not (line := lines.get(timeout=0.01)):
                    return
                name, *arguments = json.loads(line)
                try:
                    answer = {"value": getattr(self, name)(*arguments)}
                except (RuntimeError, TimeoutError) as error:
                    answer = {"error": str(error)}
                print(json.dumps(answer), flush=True)


def _read(lines: queue.SimpleQueue) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")


if __name__ == "__main__":
    _Window().serve()
