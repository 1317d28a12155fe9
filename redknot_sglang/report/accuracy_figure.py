# SPDX-License-Identifier: Apache-2.0
"""Bars of a certificate: exact match of dense attention and of every policy, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redknot_sglang.report.style import SERIES
from redknot_sglang.report.svg import LETTER, Canvas, Scale

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 280, 64, 16, 18, 48
BAR, BAR_GAP, GROUP_GAP = 20, 4, 26
# Dense attention's bars have the colour of what is only compared with.
DENSE_COLOR = 5


def sides(certificate: Mapping[str, Any]) -> dict[str, int]:
    """Names of the bars, dense attention and every policy, each with the number of its colour."""
    colors = [color for color in range(SERIES) if color != DENSE_COLOR]
    names = {name: colors[i % len(colors)] for i, name in enumerate(certificate["policies"])}
    return {"dense": DENSE_COLOR, **names}


def accuracy_figures(certificate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A heading and a picture (SVG) for each length, and for the user's data if it has answers.

    certificate: the document.
    """
    policies = certificate["policies"]
    lengths = list(dict.fromkeys(cell["length"] for entry in policies.values() for cell in entry["cells"]))
    figures = []
    for length in lengths:
        name = "own data" if length is None else f"{length} tokens"
        cells = {p: [c for c in entry["cells"] if c["length"] == length] for p, entry in policies.items()}
        figures.append((name, _bars(name, cells, sides(certificate))))
    return figures


def _bars(name: str, cells: Mapping[str, Sequence[Mapping[str, Any]]], colors: Mapping[str, int]) -> str:
    first = next(iter(cells.values()))
    tasks = [cell["task"] for cell in first]
    bars = len(colors) * (BAR + BAR_GAP)
    group = max(bars, max(len(task) for task in tasks) * LETTER) + GROUP_GAP
    width = max(300.0, LEFT + group * len(tasks) + RIGHT)
    canvas = Canvas(f"Exact match, {name}", width, HEIGHT)
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    for percent in range(0, 101, 20):
        canvas.line(LEFT, y(percent / 100), width - RIGHT, y(percent / 100), "grid")
        canvas.text(LEFT - 8, y(percent / 100) + 4, f"{percent}", "end", "soft")
    for number, task in enumerate(tasks):
        left = LEFT + GROUP_GAP / 2 + number * group
        dense = first[number]["dense"]
        found = {"dense": dense, **{policy: rows[number]["policy"] for policy, rows in cells.items()}}
        at = left + (group - GROUP_GAP - bars) / 2
        for side, figures in found.items():
            low, high = figures["interval_95"]
            tip = f"{task}, {side}: {figures['right']} of {first[number]['n']} right, {100 * low:.1f} to {100 * high:.1f} %"
            top = y(figures["accuracy"])
            canvas.rect(at, top, BAR, HEIGHT - BOTTOM - top, f"f{colors[side]}", tip)
            middle = at + BAR / 2
            canvas.line(middle, y(low), middle, y(high), "whisker")
            for end in (low, high):
                canvas.line(middle - 4, y(end), middle + 4, y(end), "whisker")
            at += BAR + BAR_GAP
        canvas.text(left + (group - GROUP_GAP) / 2, HEIGHT - BOTTOM + 18, task, "middle")
    canvas.line(LEFT, HEIGHT - BOTTOM, width - RIGHT, HEIGHT - BOTTOM, "axis")
    canvas.text(LEFT, HEIGHT - 8, "bars: exact match; whiskers: 95 % interval (Wilson)", css="soft")
    canvas.text(18, (TOP + HEIGHT - BOTTOM) / 2, "exact match, %", "middle", turned=True)
    return canvas.svg()
