# SPDX-License-Identifier: Apache-2.0
"""README's table and the one of pretrained models are what the committed raw files give, figure by figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eval import pretrained
from eval.headline import headline, others, pages

ROOT = Path(__file__).resolve().parents[2]


def test_readme_and_measurements_hold_what_the_committed_results_give() -> None:
    for page, text in pages(ROOT).items():
        assert page.read_text() == text, "run `python -m eval.headline --write`"


def test_a_changed_raw_file_changes_the_table(tmp_path: Path) -> None:
    for folder in ("results", "model"):
        shutil.copytree(ROOT / "eval" / folder, tmp_path / "eval" / folder)
    assert (headline(tmp_path), others(tmp_path)) == (headline(ROOT), others(ROOT))
    demo = tmp_path / "eval" / "results" / "cpu_demo.json"
    record = json.loads(demo.read_text())
    record["servers"]["SGLang --redknot"]["fit"] = 21
    demo.write_text(json.dumps(record))
    assert "| 6 | 21 | 3.5x |" in others(tmp_path)


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_what_a_repair_policy_loses_is_told_of_what_documents_give() -> None:
    cell = {"exact": 0.6, "nodocs": 0.2, "none+lead": 0.2, "boundary:16": 0.4}
    assert pretrained.lost(cell, "boundary:16") == pytest.approx(0.5)
    assert pretrained.lost(cell, "none+lead") == pytest.approx(1.0)
