# SPDX-License-Identifier: Apache-2.0
"""How often retrieval heads of pretrained models find the right document, from what `eval.real.heads` wrote under eval/results/real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.certified import FOLDER
from redknot_sglang.measure.statistics import wilson_interval


def table(results: Path) -> str:
    """A table for each model, as Markdown. Raises KeyError if a file lacks a figure."""
    records = [json.loads(path.read_text()) for path in sorted((results / FOLDER).glob("*-heads.json"))]
    return "\n\n".join("\n".join(_table(record)) for record in records)


def _table(record: dict[str, Any]) -> Iterator[str]:
    files = {"calibration": record["calibration"], **record["held_out"]}
    model = record["model"].replace("qwen", "Qwen").replace("coder", "Coder").replace("b", "B")
    yield f"| {model} | " + " | ".join(f"{_name(name)}, n = {found['n']}" for name, found in files.items()) + " |"
    yield "|---" * (1 + len(files)) + "|"
    for at, (layer, head) in enumerate(record["best"]):
        shares = (f"{100 * found['first'][at] / found['n']:.0f} %" for found in files.values())
        yield f"| head {layer}.{head} | " + " | ".join(shares) + " |"
    for key, title in (("together", "the first four together"), ("all_heads", "mean of all heads")):
        for count in ("1", "2"):
            shares = (_share(found[key][count], found["n"]) for found in record["held_out"].values())
            yield f"| {title}, among the first {count} | | " + " | ".join(shares) + " |"


def _name(file: str) -> str:
    if file == "calibration":
        return file
    source, length = file.split("_")
    return f"{source.upper()}, {int(length) // 1024}K"


def _share(count: int, n: int) -> str:
    low, high = wilson_interval(count, n)
    return f"{100 * count / n:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
