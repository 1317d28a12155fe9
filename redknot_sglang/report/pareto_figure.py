# SPDX-License-Identifier: Apache-2.0
"""The Pareto curve: what maps of each method lose, over the KV bytes that they keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redknot_sglang.report.style import SERIES
from redknot_sglang.report.svg import Canvas, Scale, round_ticks

WIDTH, HEIGHT = 880, 400
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 20, 54


def series(profile: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Names of the methods and controls that have measured maps, each with its colour and whether it is a control."""
    names = sorted({_name(point) for point in profile["points"]}, key=lambda name: (_is_control(name), name))
    return {name: (index % SERIES, _is_control(name)) for index, name in enumerate(names)}


def pareto_figure(profile: Mapping[str, Any]) -> str:
    """A point for each measured map: its loss above dense attention in nats per token, over its share of stock's KV bytes.

    profile: the document. Returns an SVG element.
    """
    points, dense = profile["points"], float(profile["dense"]["loss"])
    rises = [point["loss"] - dense for point in points]
    low, high = min(0.0, *rises), max(*rises, 1e-9)
    pad = 0.04 * (high - low)
    x = Scale(0, 1, LEFT, WIDTH - RIGHT)
    y = Scale(low - pad, high + pad, HEIGHT - BOTTOM, TOP)
    canvas = Canvas("Loss over KV bytes", WIDTH, HEIGHT)
    for value in round_ticks(low - pad, high + pad):
        canvas.line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid")
        canvas.text(LEFT - 8, y(value) + 4, f"{value:.4g}", "end", "soft")
    for percent in range(0, 101, 10):
        canvas.line(x(percent / 100), HEIGHT - BOTTOM, x(percent / 100), HEIGHT - BOTTOM + 4, "axis")
        canvas.text(x(percent / 100), HEIGHT - BOTTOM + 18, f"{percent}", "middle", "soft")
    canvas.line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")
    canvas.path([(x(points[i]["kv"]), y(rises[i])) for i in profile["pareto"]], "pareto")
    colors = series(profile)
    for point, rise in zip(points, rises, strict=True):
        color, is_control = colors[_name(point)]
        tip = f"{point['method']}, window {point['window']}: {100 * point['kv']:.1f} % of the bytes, {rise:+.4g} nats"
        canvas.mark(x(point["kv"]), y(rise), f"{'o' if is_control else 'f'}{color}", tip, square=is_control)
    chosen, rise = points[profile["chosen"]], rises[profile["chosen"]]
    canvas.mark(x(chosen["kv"]), y(rise), "chosen", f"the chosen map: {profile['reason']}", radius=9)
    canvas.text(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, f"KV bytes at {profile['target']['at']} tokens, % of stock", "middle"
    )
    canvas.text(18, (TOP + HEIGHT - BOTTOM) / 2, "loss above dense attention, nats per token", "middle", turned=True)
    return canvas.svg()


def _name(point: Mapping[str, Any]) -> str:
    """Name of the series that a point belongs to. Controls of one kind are one series, whatever their seed or method."""
    kind, colon, _ = str(point["method"]).partition(":")
    return f"{kind} (control)" if colon else kind


def _is_control(name: str) -> bool:
    return name.endswith("(control)") or name == "dense"
