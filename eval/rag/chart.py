# SPDX-License-Identifier: Apache-2.0
"""The result as a picture: how time to first token is distributed, and where prompt tokens came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from eval.rag.report import CLASSES, Phase, Summaries
from redknot_sglang.measure.statistics import quantile

_WIDTH, _ROW, _TOP, _MARGIN = 1240, 360, 70, 60
_CURVES, _BARS = 620, 380
_INK, _QUIET, _LINE = (32, 32, 36), (110, 110, 118), (215, 215, 220)
_COLORS = ((120, 126, 136), (196, 52, 52), (38, 98, 168), (226, 148, 32), (60, 140, 80), (128, 76, 160))


def draw(phases: Sequence[Phase], summaries: Summaries, note: str) -> Image.Image:
    """One row for each kind of traffic. note: beside the legend.

    Left, the share of requests (up) whose first token came within a time (right, logarithmic); right, the mean share of
    the prompt tokens in each class, as the servers report them. Sides without an answer are left out.
    """
    kinds = list(dict.fromkeys(phase.traffic for phase in phases))
    sides = list(dict.fromkeys(phase.side for phase in phases))
    colors = {side: _COLORS[i % len(_COLORS)] for i, side in enumerate(sides)}
    image = Image.new("RGB", (_WIDTH, _TOP + _ROW * len(kinds)), "white")
    pen = ImageDraw.Draw(image)
    _legend(pen, colors, note)
    for number, kind in enumerate(kinds):
        top = _TOP + number * _ROW
        found = {phase.side: phase for phase in phases if phase.traffic == kind and phase.complete}
        _curves(pen, top, kind, {side: [r.ttft_s for r in phase.complete] for side, phase in found.items()}, colors)
        shares = {side: [summaries[kind][side]["shares"][name] for name in CLASSES] for side in found}
        _bars(pen, top, shares, colors)
    return image


def _legend(pen: ImageDraw.ImageDraw, colors: Mapping[str, tuple[int, int, int]], note: str) -> None:
    left = float(_MARGIN)
    for side, color in colors.items():
        pen.rectangle((left, 24, left + 16, 40), fill=color)
        pen.text((left + 24, 32), side, font=_font(17), fill=_INK, anchor="lm")
        left += 52 + pen.textlength(side, font=_font(17))
    pen.text((left, 32), note, font=_font(14), fill=_QUIET, anchor="lm")


def _curves(
    pen: ImageDraw.ImageDraw,
    top: int,
    kind: str,
    times: Mapping[str, list[float]],
    colors: Mapping[str, tuple[int, int, int]],
) -> None:
    """Empirical distribution functions; times in seconds."""
    left, right, head, floor = _MARGIN, _MARGIN + _CURVES, top + 50, top + _ROW - 50
    pen.text((left, top + 20), f"{kind}: time to first token", font=_font(17), fill=_INK, anchor="lm")
    medians = ", ".join(f"{1000 * quantile(values, 0.5):.0f}" for values in times.values())
    pen.text((right, top + 20), f"p50 {medians} ms", font=_font(14), fill=_QUIET, anchor="rm")
    for share in (0.0, 0.5, 1.0):
        y = floor - share * (floor - head)
        pen.line((left, y, right, y), fill=_LINE)
        pen.text((left - 8, y), f"{100 * share:.0f} %", font=_font(13), fill=_QUIET, anchor="rm")
    every = [seconds for values in times.values() for seconds in values]
    if not every:
        return
    low, high = math.log10(min(every)) - 0.05, math.log10(max(every)) + 0.05

    def across(seconds: float) -> float:
        return left + (math.log10(seconds) - low) / (high - low) * (right - left)

    for tick in _ticks(10**low, 10**high):
        pen.line((across(tick), head, across(tick), floor), fill=_LINE)
        label = f"{1000 * tick:g} ms" if tick < 1 else f"{tick:g} s"
        pen.text((across(tick), floor + 16), label, font=_font(13), fill=_QUIET, anchor="mm")
    for side, values in times.items():
        points, share = [(across(min(values)), float(floor))], 0.0
        for number, seconds in enumerate(sorted(values), start=1):
            before, share = share, number / len(values)
            points += [(across(seconds), floor - part * (floor - head)) for part in (before, share)]
        pen.line(points, fill=colors[side], width=3)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two times; of a wide range powers of ten only."""
    steps = (1,) if high / low > 200 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _bars(
    pen: ImageDraw.ImageDraw,
    top: int,
    shares: Mapping[str, list[float]],
    colors: Mapping[str, tuple[int, int, int]],
) -> None:
    left, head, floor = _WIDTH - _MARGIN - _BARS, top + 50, top + _ROW - 50
    pen.text((left, top + 20), "prompt tokens by class", font=_font(17), fill=_INK, anchor="lm")
    pen.line((left, floor, left + _BARS, floor), fill=_LINE, width=2)
    slot = _BARS / len(CLASSES)
    width = (slot - 16) / max(1, len(shares))
    for number, name in enumerate(CLASSES):
        for at, (side, values) in enumerate(shares.items()):
            x, value = left + number * slot + at * width, values[number]
            y = floor - min(1.0, value) * (floor - head - 20)
            pen.rectangle((x, y, x + width - 3, floor), fill=colors[side])
            label = f"{100 * value:.0f}" if value >= 0.1 or value == 0 else f"{100 * value:.1f}"
            pen.text((x + width / 2 - 1, y - 9), label, font=_font(12), fill=_INK, anchor="mm")
        pen.text((left + (number + 0.5) * slot - 8, floor + 16), f"{name} %", font=_font(13), fill=_QUIET, anchor="mm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
