# SPDX-License-Identifier: Apache-2.0
"""Opens a page in a headless Chromium (PySide6-WebEngine): what it asks for, says, and where its words stand, as JSON.

    python browser.py PAGE.html SHOT.png light|dark

A program of its own: the browser takes over its process, and ends it where a system library is missing.
"""

import json
import os
import sys
from typing import Any

PAGE, SHOT, MODE = sys.argv[1:4]
os.environ["QT_QPA_PLATFORM"] = "offscreen"
SCHEME = {"light": 1, "dark": 0}[MODE]
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
    f"--no-sandbox --disable-gpu --disable-background-networking --blink-settings=preferredColorScheme={SCHEME}"
)

from PySide6.QtCore import QTimer, QUrl  # noqa: E402
from PySide6.QtWebEngineCore import QWebEngineUrlRequestInterceptor  # noqa: E402
from PySide6.QtWebEngineWidgets import QWebEngineView  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

WORDS = """
JSON.stringify({
  height: document.documentElement.scrollHeight,
  width: document.documentElement.scrollWidth,
  text: document.body.innerText,
  background: getComputedStyle(document.body).backgroundColor,
  figures: [...document.querySelectorAll('.figure svg')].map(svg => ({
    title: svg.querySelector('title').textContent,
    box: (r => [r.left, r.top, r.right, r.bottom])(svg.getBoundingClientRect()),
    shapes: svg.querySelectorAll('rect, circle, polyline').length,
    words: [...svg.querySelectorAll('text')].map(t => ({
      text: t.textContent, box: (r => [r.left, r.top, r.right, r.bottom])(t.getBoundingClientRect())
    })),
  })),
})
"""


class Requests(QWebEngineUrlRequestInterceptor):
    """Notes every address that the page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def interceptRequest(self, info: Any) -> None:
        """Called by the browser before each request."""
        self.urls.append(info.requestUrl().toString())


app = QApplication(["browser"])
view, requests = QWebEngineView(), Requests()
view.page().profile().setUrlRequestInterceptor(requests)
view.resize(1100, 900)


def look(loaded: bool) -> None:
    """The page has loaded."""
    if not loaded:
        sys.exit("the page did not load")
    view.page().runJavaScript(WORDS, grow)


def grow(answer: str) -> None:
    """Make the window as high as the page, for the screenshot."""
    found = json.loads(answer)
    view.resize(1100, min(found["height"], 8000))
    # The picture is drawn some frames after the window grew.
    QTimer.singleShot(1000, lambda: end(found))


def end(found: dict[str, Any]) -> None:
    """Write the screenshot and print what was found."""
    if not view.grab().save(SHOT):
        sys.exit("the screenshot could not be written")
    print(json.dumps(found | {"requests": requests.urls}))
    app.quit()


view.loadFinished.connect(look)
view.load(QUrl.fromLocalFile(PAGE))
view.show()
QTimer.singleShot(60_000, lambda: sys.exit("no answer within a minute"))
app.exec()
