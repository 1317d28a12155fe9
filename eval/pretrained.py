# SPDX-License-Identifier: Apache-2.0
"""What documents that are reused give on pretrained models, from eval/results/real_repair_offline.json.xz.

The file holds a list for each question and way of computing the documents; its second entry says whether the answer
contains an accepted one. Ways used here: `exact` (dense attention over everything), `nodocs` (the question without
documents), `none` (documents computed alone, no repair), `none+lead` (computed behind the lead, no repair) and
`boundary:16` (computed alone, the first 16 rows of each computed again in place). It has no cells of `blend`.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

FILE = "real_repair_offline.json.xz"
_MODELS = {"qwen05": "Qwen2.5-Coder-0.5B", "qwen15": "Qwen2.5-Coder-1.5B"}
_QUESTIONS = {
    "nq2k": "NQ, 2K tokens",
    "nq8k": "NQ, 8K tokens",
    "nq16k": "NQ, 16K tokens",
    "musique": "MuSiQue",
}
_WAYS = ("exact", "nodocs", "none", "none+lead", "boundary:16")


def cells(results: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Share of the answers that contain an accepted one, by (model, questions) and way; `n` is the number of questions."""
    data = json.loads(lzma.decompress((results / FILE).read_bytes()))["first"]
    found = {}
    for name, ways in data.items():
        model, questions = name.split()
        shares = {way: sum(entry[1] for entry in ways[way]) / len(ways[way]) for way in _WAYS}
        found[_MODELS[model], _QUESTIONS[questions]] = {**shares, "n": len(ways["exact"])}
    return found


def lost(cell: dict[str, float], way: str) -> float:
    """Share of what documents give under dense attention that `way` loses."""
    return (cell["exact"] - cell[way]) / (cell["exact"] - cell["nodocs"])


def table(results: Path) -> str:
    """One line for each model and set of questions, as Markdown."""
    lines = [
        "| answers that contain an accepted one | n | dense | without documents | `none` | `none`, behind the lead | "
        "`boundary:16` |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, questions), cell in sorted(cells(results).items(), key=lambda entry: _order(*entry[0])):
        lines.append(
            f"| {model}, {questions} | {cell['n']} | {_percent(cell['exact'])} | {_percent(cell['nodocs'])} | "
            + " | ".join(f"{_percent(cell[way])}{_loss(cell, way)}" for way in _WAYS[2:])
            + " |"
        )
    return "\n".join(lines)


def _order(model: str, questions: str) -> tuple[str, int]:
    return model, list(_QUESTIONS.values()).index(questions)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _loss(cell: dict[str, Any], way: str) -> str:
    # Of a handful of right answers no share can be told.
    return f", loses {100 * lost(cell, way):.0f} %" if cell["exact"] >= 0.2 else ""
