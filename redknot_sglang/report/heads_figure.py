# SPDX-License-Identifier: Apache-2.0
"""Pictures with a cell or a curve for each KV head: its class, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redknot_sglang.heads import HeadMap
from redknot_sglang.report.svg import LETTER, Canvas, Scale, thinned

LEFT, TOP, BOTTOM = 64, 14, 44
PANEL_WIDTH, PANEL_HEIGHT, PANEL_GAP, COLUMNS = 148, 92, 14, 6

Matrix = Sequence[Sequence[float]]


def class_figure(head_map: HeadMap) -> str:
    """The class of every KV head: layers across, heads down. Returns an SVG element."""
    canvas, cell = _grid("Head classes", head_map.num_layers, head_map.num_kv_heads)
    local = f"local, window {head_map.window}, sink {head_map.sink}"
    for layer, row in enumerate(head_map.is_global):
        for head, is_global in enumerate(row):
            what = "global" if is_global else local
            tip = f"layer {layer}, KV head {head}: {what}"
            x, y = LEFT + layer * cell, TOP + head * cell
            canvas.rect(x, y, cell - 1.5, cell - 1.5, "global" if is_global else "local", tip)
    return canvas.svg()


def evidence_figure(what: str, harm: Matrix) -> str:
    """A number for each KV head, e.g. how much it needs the whole context: the stronger the colour, the larger.

    what: what the number is.
    harm: [layers][KV heads].
    Returns an SVG element.
    """
    canvas, cell = _grid(what, len(harm), len(harm[0]))
    low, high = min(map(min, harm)), max(map(max, harm))
    for layer, row in enumerate(harm):
        for head, value in enumerate(row):
            share = (value - low) / (high - low) if high > low else 0.0
            tip = f"layer {layer}, KV head {head}: {what}, {value:.4g}"
            x, y = LEFT + layer * cell, TOP + head * cell
            canvas.rect(x, y, cell - 1.5, cell - 1.5, "evidence", tip, opacity=0.06 + 0.94 * share)
    return canvas.svg()


def curves_figure(method: str, harm: Mapping[str, Matrix], head_map: HeadMap | None) -> str:
    """How a number for each KV head falls with the window: a panel for each layer, a curve for each head.

    method: what the number is.
    harm: by window in tokens (as text), [layers][KV heads].
    head_map: its classes colour the curves; None if there is no map of this model.
    Returns an SVG element.
    """
    windows = sorted(harm, key=int)
    layers, heads = len(harm[windows[0]]), len(harm[windows[0]][0])
    high = max(max(map(max, harm[window])) for window in windows) or 1.0
    high = 1.0 if 0.5 < high <= 1.0 else high
    columns = min(COLUMNS, layers)
    rows = -(-layers // columns)
    pitch_x, pitch_y = PANEL_WIDTH + PANEL_GAP, PANEL_HEIGHT + 2 * PANEL_GAP
    width = LEFT + columns * pitch_x
    canvas = Canvas(f"{method} over the window", width, TOP + rows * pitch_y + BOTTOM)
    for layer in range(layers):
        left, top = LEFT + layer % columns * pitch_x, TOP + layer // columns * pitch_y + PANEL_GAP
        is_last = layer + columns >= layers
        x = Scale(int(windows[0]), int(windows[-1]), left, left + PANEL_WIDTH, log=True)
        y = Scale(0, high, top + PANEL_HEIGHT, top)
        canvas.rect(left, top, PANEL_WIDTH, PANEL_HEIGHT, "frame")
        canvas.text(left, top - 4, f"layer {layer}", css="soft")
        for head in range(heads):
            css = "local"
            if head_map is not None and head_map.is_global[layer][head]:
                css = "global"
            points = [(x(int(window)), y(max(0.0, harm[window][layer][head]))) for window in windows]
            values = ", ".join(f"{window}: {harm[window][layer][head]:.3g}" for window in windows)
            canvas.path(points, css, f"layer {layer}, KV head {head}: {values}")
        if layer % columns == 0:
            for value in (0.0, high):
                canvas.text(left - 6, y(value) + 4, f"{value:.3g}", "end", "soft")
        if is_last:
            for value in thinned([int(window) for window in windows], x, 5 * LETTER):
                canvas.line(x(value), top + PANEL_HEIGHT, x(value), top + PANEL_HEIGHT + 4, "axis")
                canvas.text(x(value), top + PANEL_HEIGHT + 20, str(value), "middle", "soft")
    canvas.text(width / 2, TOP + rows * pitch_y + BOTTOM - 6, "window, tokens", "middle")
    return canvas.svg()


def fits(head_map: HeadMap | None, model: Mapping[str, Any]) -> bool:
    """Whether there is a head map, and it has as many layers and heads as the `model` of a profile."""
    shape = (model["num_layers"], model["num_kv_heads"])
    return head_map is not None and (head_map.num_layers, head_map.num_kv_heads) == shape


def _grid(title: str, layers: int, heads: int) -> tuple[Canvas, float]:
    """A canvas with room for layers x heads cells and the numbers of both, and the width of a cell."""
    cell = max(9.0, min(26.0, 900 / layers, 520 / heads))
    bottom = TOP + heads * cell
    canvas = Canvas(title, max(260.0, LEFT + layers * cell + 12), bottom + BOTTOM)
    across = Scale(0, layers, LEFT, LEFT + layers * cell)
    down = Scale(0, heads, TOP, bottom)
    for layer in thinned(range(layers), across, (len(str(layers)) + 1) * LETTER):
        canvas.text(across(layer + 0.5) - 0.75, bottom + 15, str(layer), "middle", "soft")
    for head in thinned(range(heads), down, 14):
        canvas.text(LEFT - 8, down(head + 0.5) + 3.5, str(head), "end", "soft")
    canvas.text(LEFT, bottom + 34, "layer")
    canvas.text(18, TOP + heads * cell / 2, "KV head", "middle", turned=True)
    return canvas, cell
