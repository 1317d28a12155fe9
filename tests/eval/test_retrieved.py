# SPDX-License-Identifier: Apache-2.0
"""The table of retrieval heads, from a file that this test writes."""

from __future__ import annotations

import json
from pathlib import Path

from eval import certified, retrieved


def test_a_head_a_line_then_four_together_and_all_heads(tmp_path: Path) -> None:
    counts = {"n": 20, "first": [19, 10], "together": {"1": 18, "2": 20}, "all_heads": {"1": 2, "2": 4}}
    record = {
        "model": "qwen2.5-coder-0.5b",
        "best": [[9, 8], [3, 0]],
        "calibration": {"n": 10, "first": [9, 5]},
        "held_out": {"nq_2048": counts},
    }
    (tmp_path / certified.FOLDER).mkdir()
    (tmp_path / certified.FOLDER / "x-heads.json").write_text(json.dumps(record))
    assert retrieved.table(tmp_path).splitlines() == [
        "| Qwen2.5-Coder-0.5B | calibration, n = 10 | NQ, 2K, n = 20 |",
        "|---|---|---|",
        "| head 9.8 | 90 % | 95 % |",
        "| head 3.0 | 50 % | 50 % |",
        "| the first four together, among the first 1 | | 90 % (70 to 97) |",
        "| the first four together, among the first 2 | | 100 % (84 to 100) |",
        "| mean of all heads, among the first 1 | | 10 % (3 to 30) |",
        "| mean of all heads, among the first 2 | | 20 % (8 to 42) |",
    ]
