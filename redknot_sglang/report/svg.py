# SPDX-License-Identifier: Apache-2.0
"""Pictures of lines, bars and words in SVG, whose colours are those of the page (`style.py`), light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from redknot_sglang.heads.summary import printable

# Pixels that a digit or letter of the page's 12 px type takes, rather too many, so that labels never touch.
LETTER = 7.0
TYPE = 12


class Canvas:
    """A picture that is drawn part by part. Units are pixels, the origin is at the top left.

    title: read out to those who cannot see the picture.
    width: in pixels.
    height: in pixels.
    In all methods `css` is a class of the page's style sheet, and `tip` is shown where the pointer rests.
    """

    def __init__(self, title: str, width: float, height: float) -> None:
        self.title, self.width, self.height = title, width, height
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line from (x1, y1) to (x2, y2)."""
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, tip: str = "", opacity: float = 1
    ) -> None:
        """A filled rectangle whose upper left corner is (x, y); opacity is 0 to 1."""
        shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{max(0, height):.1f}"'
        faint = "" if opacity == 1 else f' fill-opacity="{opacity:.3f}"'
        self._parts.append(f'<rect {shape} class="{css}"{faint}>{_tip(tip)}</rect>')

    def path(self, points: Iterable[tuple[float, float]], css: str, tip: str = "") -> None:
        """A line through points (x, y)."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline points="{joined}" class="{css}">{_tip(tip)}</polyline>')

    def mark(self, x: float, y: float, css: str, tip: str = "", radius: float = 4.5, square: bool = False) -> None:
        """A disc around (x, y), or with `square` a square of the same width."""
        if square:
            self.rect(x - radius, y - radius, 2 * radius, 2 * radius, css, tip)
            return
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{css}">{_tip(tip)}</circle>')

    def text(self, x: float, y: float, words: str, anchor: str = "start", css: str = "", turned: bool = False) -> None:
        """A line of text. (x, y) is on its baseline, at the text's start, middle or end as `anchor` says; `turned` text runs
        upward.
        """
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        kind = f' class="{css}"' if css else ""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self._parts.append(f"<text {place}{kind}{turn}>{escape(printable(words))}</text>")

    def svg(self) -> str:
        """The picture as an SVG element."""
        box = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" height="{self.height:.0f}"'
        title = f"<title>{escape(printable(self.title))}</title>"
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">', title, *self._parts, "</svg>"])


class Scale:
    """Maps numbers to pixels.

    low: number at pixel `start`.
    high: number at pixel `end`.
    log: whether distances are those of logarithms.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self._log = log
        self._low, self._high = (math.log(low), math.log(high)) if log else (low, high)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        at = math.log(value) if self._log else value
        span = self._high - self._low
        share = (at - self._low) / span if span else 0.5
        return self._start + share * (self._end - self._start)


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high` for an axis, at most `most` + 1 of them."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(values: Sequence[int], place: Scale, gap: float) -> list[int]:
    """Values whose labels on an axis do not touch: the first, and then each that is far enough from the one before.

    values: ascending.
    place: from values to pixels.
    gap: pixels between two labels.
    """
    kept: list[int] = []
    for value in values:
        if not kept or place(value) - place(kept[-1]) >= gap:
            kept.append(value)
    return kept


def _tip(words: str) -> str:
    return f"<title>{escape(printable(words))}</title>" if words else ""
