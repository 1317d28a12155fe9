# SPDX-License-Identifier: Apache-2.0
"""How many rows each layer of a real server computes, by SGLang's `--forward-hooks`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


def flag(file: Path) -> str:
    """The flag of a server that writes a line into `file` whenever a layer runs."""
    hook = {
        "name": "rows",
        "target_modules": ["model.layers.?"],
        "hook_factory": "tests.serving.layer_rows:make",
        "config": {"file": str(file)},
    }
    return f"--forward-hooks={json.dumps([hook])}"


def make(config: dict[str, str]) -> Callable[[Any, tuple[Any, ...], Any], None]:
    """SGLang's hook for all layers."""

    def note(layer: Any, args: tuple[Any, ...], output: Any) -> None:
        with Path(config["file"]).open("a") as file:
            file.write(f"{layer.self_attn.attn.layer_id} {len(args[0])}\n")

    return note


def taken(file: Path) -> dict[int, int]:
    """Rows by layer since the last call."""
    rows: Counter[int] = Counter()
    for line in file.read_text().splitlines():
        layer, count = map(int, line.split())
        rows[layer] += count
    file.write_text("")
    return dict(rows)
