# SPDX-License-Identifier: Apache-2.0
"""Tables of certificates of pretrained models, from certificates that this file writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval import certified


def cell(task: str, right: int, lost: float) -> dict[str, Any]:
    """A cell of a certificate: 20 questions, 10 of them answered right by stock SGLang."""
    return {
        "task": task, "length": None, "n": 20, "loss_points": lost, "loss_interval_95": [lost - 4, lost + 5],
        "dense": {"accuracy": 0.5}, "policy": {"accuracy": right / 20}, "computed": {"rows": 0.02, "flops": 0.011},
    }  # fmt: skip


def write(results: Path, name: str, files: list[str], policies: dict[str, Any], controls: dict[str, Any]) -> None:
    """A certificate with what the tables read."""
    folder = results / certified.FOLDER
    folder.mkdir(exist_ok=True)
    record = {
        "model": {"name": "qwen2.5-coder-1.5b"},
        "settings": {"data": [{"name": f"{file}.jsonl"} for file in files]},
        "policies": policies,
        "controls": controls,
    }
    (folder / f"{name}.certificate.json").write_text(json.dumps(record))


def test_certificates_of_one_model_are_one_row_with_its_lengths_in_order(tmp_path: Path) -> None:
    several = {"question:2": {"cells": [cell("nq_16384", 12, -10), cell("nq_2048", 9, 5), cell("musique_8192", 9, 5)]}}
    write(tmp_path, "a", ["nq_2048", "nq_16384", "musique_8192"], several, {})
    write(tmp_path, "b", ["nq_8192"], {"question:2": {"cells": [cell("data", 10, 0)]}}, {})
    (row,) = certified.lines(tmp_path)
    assert row[0].startswith("Qwen2.5-Coder-1.5B, NQ, 2K / 8K / 16K tokens, n = 20 each")
    assert row[1] == "50.0 / 50.0 / 50.0 %"
    assert row[2] == "45.0 / 50.0 / 60.0 % (`question:2`)"
    assert row[3] == "-5.0 / 0 / +10.0 points; 1.1 / 1.1 / 1.1 % of a dense prefill's FLOPs"


def test_a_table_has_the_controls_behind_the_policies_and_gains_with_their_interval(tmp_path: Path) -> None:
    policies = {"none": {"cells": [cell("data", 2, 40)]}, "question:2": {"cells": [cell("data", 12, -10)]}}
    write(tmp_path, "a", ["nq_8192"], policies, {"random:2": {"cells": [cell("data", 1, 45)]}})
    lines = certified.table(tmp_path).splitlines()
    assert lines[2].startswith("| stock SGLang | 50.0 %")
    assert lines[3] == "| `question:2` | 60.0 % | +10.0 (+5.0 to +14.0) | 2.0 % | 1.1 % |"
    assert [line.split("`")[1] for line in lines[3:]] == ["question:2", "none", "random:2"]


def test_an_unknown_control_is_no_line_without_a_place(tmp_path: Path) -> None:
    write(tmp_path, "a", ["nq_8192"], {}, {"coin:2": {"cells": [cell("data", 1, 45)]}})
    with pytest.raises(ValueError, match="coin:2"):
        certified.table(tmp_path)
