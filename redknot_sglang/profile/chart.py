# SPDX-License-Identifier: Apache-2.0
"""The Pareto curve as a picture: KV bytes against loss, every measured map a dot, the chosen one ringed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from redknot_sglang.profile.select import Point, Target

_WIDTH, _HEIGHT = 1100, 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 100, 860, 60, 570
_INK, _QUIET, _LINE = (32, 32, 36), (110, 110, 118), (215, 215, 220)
_COLORS = ((38, 98, 168), (196, 52, 52), (226, 148, 32), (60, 140, 80), (128, 76, 160), (120, 126, 136), (20, 150, 160))
# Losses nearer to dense than this are drawn at the floor: rounding, on a logarithmic scale, would fill the picture.
_FLOOR = 1e-6


def draw_pareto(points: Sequence[Point], front: Sequence[int], chosen: int, dense_loss: float, target: Target) -> bytes:
    """A PNG with a dot for each map: to the right its share of stock's KV bytes, upward its loss above dense attention in
    nats per token, on a logarithmic scale.

    points: all measured maps.
    front: indices of those on the Pareto curve.
    chosen: index of the map that is written.
    dense_loss: nats per token with all heads global.
    target: what the map keeps to.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    rises = [max(_FLOOR, point.loss - dense_loss) for point in points]
    low = math.floor(math.log10(min(rises)))
    high = max(low + 1, math.ceil(math.log10(max(rises))))

    def across(kv: float) -> float:
        return _LEFT + kv * (_RIGHT - _LEFT)

    def up(rise: float) -> float:
        return _BOTTOM - (math.log10(rise) - low) / (high - low) * (_BOTTOM - _TOP)

    _axes(pen, across, up, low, high, target)
    colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(dict.fromkeys(p.method for p in points))}
    corners = [(across(points[i].kv), up(rises[i])) for i in front]
    pen.line(corners, fill=_QUIET, width=2)
    for index, (point, rise) in enumerate(zip(points, rises, strict=True)):
        x, y = across(point.kv), up(rise)
        if point.is_control:
            pen.line((x - 5, y - 5, x + 5, y + 5), fill=colors[point.method], width=2)
            pen.line((x - 5, y + 5, x + 5, y - 5), fill=colors[point.method], width=2)
        else:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colors[point.method])
        if index == chosen:
            pen.ellipse((x - 10, y - 10, x + 10, y + 10), outline=_INK, width=2)
    for number, (name, color) in enumerate(colors.items()):
        y = _TOP + 10 + 26 * number
        pen.ellipse((_RIGHT + 30, y - 6, _RIGHT + 42, y + 6), fill=color)
        pen.text((_RIGHT + 52, y), name, font=_font(15), fill=_INK, anchor="lm")
    pen.text((_RIGHT + 30, _BOTTOM - 34), "ring: the map written", font=_font(13), fill=_QUIET, anchor="lm")
    pen.text((_RIGHT + 30, _BOTTOM - 14), "crosses: controls", font=_font(13), fill=_QUIET, anchor="lm")
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _axes(
    pen: ImageDraw.ImageDraw,
    across: Callable[[float], float],
    up: Callable[[float], float],
    low: int,
    high: int,
    target: Target,
) -> None:
    pen.text((_LEFT, 28), "loss above dense, nats per token", font=_font(16), fill=_INK, anchor="lm")
    for power in range(low, high + 1):
        y = up(10.0**power)
        pen.line((_LEFT, y, _RIGHT, y), fill=_LINE)
        label = f"1e{power}" if 10.0**power > _FLOOR else f"<= {_FLOOR:.0e}"
        pen.text((_LEFT - 8, y), label, font=_font(13), fill=_QUIET, anchor="rm")
    for share in range(0, 101, 10):
        x = across(share / 100)
        pen.line((x, _TOP, x, _BOTTOM), fill=_LINE)
        pen.text((x, _BOTTOM + 16), f"{share} %", font=_font(13), fill=_QUIET, anchor="mm")
    title = f"KV bytes of a prefix of {target.at} tokens, of stock's"
    pen.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 44), title, font=_font(16), fill=_INK, anchor="mm")
    if target.kv is not None:
        pen.line((across(target.kv), _TOP, across(target.kv), _BOTTOM), fill=_INK, width=2)
    elif target.max_loss is not None and target.max_loss >= 10.0**low:
        pen.line((_LEFT, up(target.max_loss), _RIGHT, up(target.max_loss)), fill=_INK, width=2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
