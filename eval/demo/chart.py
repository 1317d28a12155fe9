# SPDX-License-Identifier: Apache-2.0
"""The demo's table as a picture: one pair of bars per figure."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from eval.demo.figures import Figures, rows
from eval.demo.settings import REDKNOT, STOCK, Settings

_PANEL, _HEIGHT, _MARGIN, _TOP, _BOTTOM = 300, 460, 40, 130, 60
_BAR, _GAP = 80, 30
_INK, _QUIET, _LINE = (32, 32, 36), (110, 110, 118), (205, 205, 210)
_COLORS = {STOCK: (150, 156, 166), REDKNOT: (196, 52, 52)}


def draw(figures: dict[str, Figures], settings: Settings) -> Image.Image:
    """The picture; each panel has its own scale from zero, and the values are written on the bars."""
    panels = [
        [figure.accuracy for figure in figures.values()],
        [figure.ttft for figure in figures.values()],
        [figure.cached for figure in figures.values()],
        [figure.kv_bytes for figure in figures.values()],
        [float(figure.fit) for figure in figures.values()],
    ]
    image = Image.new("RGB", (2 * _MARGIN + _PANEL * len(panels), _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    _legend(pen, settings)
    for number, (values, row) in enumerate(zip(panels, rows(figures, settings), strict=True)):
        title, *cells, ratio = row
        _panel(pen, _MARGIN + number * _PANEL, title, ratio, values, cells)
    return image


def _legend(pen: ImageDraw.ImageDraw, settings: Settings) -> None:
    left = float(_MARGIN)
    for server, color in _COLORS.items():
        pen.rectangle((left, 28, left + 18, 46), fill=color)
        pen.text((left + 26, 37), server, font=_font(18), fill=_INK, anchor="lm")
        left += 60 + pen.textlength(server, font=_font(18))
    note = f"{settings.device}, {settings.kv_budget / 2**20:.0f} MiB of KV each"
    pen.text((left, 37), note, font=_font(16), fill=_QUIET, anchor="lm")


def _panel(pen: ImageDraw.ImageDraw, left: int, title: str, ratio: str, values: list[float], cells: list[str]) -> None:
    pen.text((left, 82), title, font=_font(17), fill=_INK, anchor="lm")
    pen.text((left, 106), ratio, font=_font(15), fill=_QUIET, anchor="lm")
    floor, scale = _HEIGHT - _BOTTOM, max(values) or 1.0
    room = floor - _TOP - 30
    for number, (value, cell, color) in enumerate(zip(values, cells, _COLORS.values(), strict=True)):
        x = left + number * (_BAR + _GAP)
        top = floor - room * value / scale
        pen.rectangle((x, top, x + _BAR, floor), fill=color)
        # An "a/b = c %" cell is wider than its bar; the share alone says it.
        label = cell.rsplit("= ", 1)[-1] if "/" in cell else cell
        pen.text((x + _BAR / 2, top - 14), label, font=_font(15), fill=_INK, anchor="mm")
    pen.line((left, floor, left + 2 * _BAR + _GAP, floor), fill=_LINE, width=2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
