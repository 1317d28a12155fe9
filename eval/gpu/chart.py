# SPDX-License-Identifier: Apache-2.0
"""A result file as a picture: times over length, and bars of what stands against stock.

python -m eval.gpu.chart eval/results/gpu_qwen3-8b.json.xz --out eval/results/gpu_qwen3-8b.webp
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from eval.gpu.results import read
from eval.gpu.table import is_generated, ratio, rows, tokens, value
from eval.picture import save
from eval.servers import STOCK

_WIDTH, _HEIGHT, _TOP, _MARGIN = 1240, 420, 76, 70
_INK, _QUIET, _LINE = (32, 32, 36), (110, 110, 118), (215, 215, 220)
_COLORS = (
    *((120, 126, 136), (196, 52, 52), (38, 98, 168), (226, 148, 32), (60, 140, 80), (128, 76, 160)),
    *((20, 150, 160), (150, 110, 60), (200, 90, 150), (90, 90, 200), (140, 160, 40)),
)

Cells = Mapping[tuple[str, int, str], Mapping[str, dict[str, Any]]]
"""`table.rows` of a shape and device."""
Points = dict[str, list[tuple[int, float]]]
"""(tokens, seconds) by side."""


def draw(data: dict[str, Any]) -> Image.Image:
    """Panels of each shape and device below one another: TTFT over length (cold, then cached), then bars over stock.

    Cells without stock's of the same run beside them are left out; a picture without any says so. Generated maps have a
    table of their own, and are drawn only where there is no other.
    """
    groups = list(dict.fromkeys((run["shape"], run["hardware"].split(",")[0]) for run in data["runs"]))
    found = {group: _drawn(rows([data], *group)) for group in groups}
    found = {group: cells for group, cells in found.items() if cells}
    heights = [_HEIGHT * (2 if _against_stock(cells) else 1) for cells in found.values()]
    image = Image.new("RGB", (_WIDTH, _TOP + (sum(heights) or _HEIGHT)), "white")
    pen = ImageDraw.Draw(image)
    if not found:
        pen.text((_MARGIN, 40), "no cell has stock's beside it", font=_font(17), fill=_INK, anchor="lm")
    sides = [STOCK, *dict.fromkeys(side for cells in found.values() for row in cells.values() for side in row)]
    colors = {side: _COLORS[i % len(_COLORS)] for i, side in enumerate(sides)}
    _legend(pen, colors if found else {})
    for number, (group, cells) in enumerate(found.items()):
        top = _TOP + sum(heights[:number])
        half = (_WIDTH - 3 * _MARGIN) // 2
        name = ", ".join(group)
        _curves(pen, (_MARGIN, top, half), f"{name}: cold prompts, time to first token", _times(cells, "cold"), colors)
        cached = _times(cells, "prefix", "segments")
        _curves(pen, (2 * _MARGIN + half, top, half), "cached: prefix, and segments in a new order", cached, colors)
        if shown := _against_stock(cells):
            _bars(pen, top + _HEIGHT, shown, colors)
    return image


def _drawn(cells: Cells) -> Cells:
    """Without generated maps, if anything is left then."""
    named = {key: {side: cell for side, cell in row.items() if not is_generated(side)} for key, row in cells.items()}
    return {key: row for key, row in named.items() if row} or cells


def _against_stock(cells: Cells) -> Cells:
    """What the bars show."""
    return {key: row for key, row in cells.items() if key[0] in ("decode", "concurrency", "serving", "load")}


def _times(cells: Cells, *steps: str) -> Points:
    """Curves by side and case; stock's are those of the last run."""
    found: dict[str, dict[int, float]] = {}
    for (step, length, case), row in cells.items():
        if step not in steps:
            continue
        for side, cell in row.items():
            for name, one in ((side, cell), (STOCK, cell["stock"])):
                shown = "segments" if step == "segments" and name == STOCK else case
                found.setdefault(f"{name} {shown}".strip(), {})[length] = one["median"]
    return {name: sorted(points.items()) for name, points in found.items()}


def _color(name: str, colors: Mapping[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    return colors[name.split()[0]]


def _legend(pen: ImageDraw.ImageDraw, colors: Mapping[str, tuple[int, int, int]]) -> None:
    left = float(_MARGIN)
    for side, color in colors.items():
        pen.rectangle((left, 16, left + 14, 30), fill=color)
        pen.text((left + 20, 23), side, font=_font(14), fill=_INK, anchor="lm")
        left += 40 + pen.textlength(side, font=_font(14))


def _curves(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int, int],
    heading: str,
    times: Points,
    colors: Mapping[str, tuple[int, int, int]],
) -> None:
    """Seconds up, tokens right, both logarithmic. place: left, top, width."""
    left, top, width = place
    head, floor, right = top + 50, top + _HEIGHT - 50, left + width - 110
    pen.text((left, top + 20), heading, font=_font(16), fill=_INK, anchor="lm")
    every = [point for points in times.values() for point in points]
    if not every:
        pen.text((left, head + 20), "not measured", font=_font(14), fill=_QUIET, anchor="lm")
        return
    x = _scale([float(length) for length, _ in every], left, right)
    y = _scale([seconds for _, seconds in every], floor, head)
    for length in sorted({length for length, _ in every}):
        pen.line((x(length), head, x(length), floor), fill=_LINE)
        pen.text((x(length), floor + 16), tokens(length), font=_font(13), fill=_QUIET, anchor="mm")
    low, high = min(s for _, s in every), max(s for _, s in every)
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        if low <= 10.0**power <= high:
            pen.line((left, y(10.0**power), right, y(10.0**power)), fill=_LINE)
            label = f"{10.0**power:g} s" if power >= 0 else f"{10 ** (power + 3):g} ms"
            pen.text((left - 6, y(10.0**power)), label, font=_font(12), fill=_QUIET, anchor="rm")
    used: list[float] = []
    # From the top down, so that labels which make room for each other keep the curves' order.
    for name, points in sorted(times.items(), key=lambda named: -named[1][-1][1]):
        color, line = _color(name, colors), [(x(length), y(seconds)) for length, seconds in points]
        pen.line(line, fill=color, width=3)
        for at in line:
            pen.ellipse((at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4), fill=color)
        # Labels of curves that end together would lie on each other.
        beside = line[-1][1]
        while any(abs(beside - other) < 14 for other in used):
            beside += 3
        used.append(beside)
        pen.text((line[-1][0] + 8, beside), name, font=_font(12), fill=color, anchor="lm")


class _scale:
    """Positive values on a logarithmic axis from `start` to `end` pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low, self._start, self._end = math.log(min(values)), start, end
        self._span = max(math.log(max(values)) - self._low, 1e-9)

    def __call__(self, at: float) -> float:
        return self._start + (math.log(at) - self._low) / self._span * (self._end - self._start)


def _bars(pen: ImageDraw.ImageDraw, top: int, shown: Cells, colors: Mapping[str, tuple[int, int, int]]) -> None:
    """How many times better than stock: decode, requests held, requests a second; logarithmic, from the line of stock."""
    left, right, head, floor = _MARGIN, _WIDTH - _MARGIN, top + 60, top + _HEIGHT - 80
    pen.text((left, top + 20), "stock's time over the map's: decode; the map's figure over stock's: requests held, requests a second",
             font=_font(16), fill=_INK, anchor="lm")  # fmt: skip
    ratios = [ratio(cell) for row in shown.values() for cell in row.values()]
    y = _scale([1.0, 2.0, *ratios], floor, head)
    slot = min(150.0, (right - left) / len(shown))
    for number, ((step, length, case), row) in enumerate(shown.items()):
        width = (slot - 14) / len(row)
        for at, (side, cell) in enumerate(row.items()):
            x, ends = left + number * slot + at * width, sorted((y(1.0), y(ratio(cell))))
            pen.rectangle((x, ends[0], x + width - 3, ends[1]), fill=colors[side])
            text = f"{value(cell)}: {ratio(cell):.2f}x"
            pen.text((x + width / 2, ends[0] - 9), text, font=_font(12), fill=_INK, anchor="mm")
        label = f"{step}, {case}" if step != "serving" else step
        for line, words in enumerate((label, tokens(length))):
            place = (left + (number + 0.5) * slot - 7, floor + 22 + 16 * line)
            pen.text(place, words, font=_font(12), fill=_QUIET, anchor="mm")
    pen.line((left, y(1.0), right, y(1.0)), fill=_INK)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main() -> None:
    """Exit code 2 if the file is no result of bench_gpu."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="picture, .webp or .png")
    args = parser.parse_args()
    data = read(args.result)
    if data is None:
        print(f"eval.gpu.chart: {args.result} is not a result of bench_gpu", file=sys.stderr)
        sys.exit(2)
    save(draw(data), args.out)


if __name__ == "__main__":
    main()
