# SPDX-License-Identifier: Apache-2.0
"""The whole run on the embedded model: maps at budgets, controls of the same size, and what each of them answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import tasks
from eval.real.pareto import main
from redknot_sglang.heads import load_head_map
from redknot_sglang.profile.select import kv_share

MODEL = Path(__file__).parents[3] / "eval" / "model"
WORDS = [
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--windows",
    "32",
    "--budgets",
    "0.5,0.8",
    "--controls",
    "0.5",
    "--tokens",
    "12",
]


def prompts(path: Path, first: int, count: int) -> Path:
    lines = []
    for seed in range(first, first + count):
        made = tasks.make_example("lookup", 220, seed)
        lines.append(json.dumps({"prompt": tasks.render(made), "answer": made.answer}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prompts")
    calibration, held_out = prompts(folder / "c.jsonl", 10, 3), prompts(folder / "h.jsonl", 50, 7)
    return [str(MODEL), "--calibration", str(calibration), "--held-out", str(held_out)]


def test_maps_and_controls_are_asked(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pareto.json"
    more = ["--calibrate", "2", "--n", "5", "--batch", "2", "--maps", str(tmp_path / "maps")]
    assert main([*files, *WORDS, *more, "--methods", "mass,ablation", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    names = ["own 0.5", "own 0.8", "random 0.5", "answers 0.5", "answers 0.8", "reverse 0.5"]
    assert [one["name"] for one in found["maps"]] == names and found["left_out"] == []
    assert list(found["results"]) == ["dense", *names]
    assert found["results"]["dense"]["right"] == "11111" and found["results"]["dense"]["same"] == "11111"
    for one in found["maps"]:
        assert one["kv"] == kv_share(one["global"], 24, 32, 4, found["at"]) <= one["budget"]
        assert one["loss"] == min(one["tried"].values(), default=None)
        saved = load_head_map(tmp_path / "maps" / f"{one['name'].replace(' ', '_')}.json")
        assert saved.to_dict()["layers"] == one["layers"]
    mean = {name: sum(result["divergence"]) / 5 for name, result in found["results"].items()}
    assert mean["own 0.5"] < 0.01 and mean["own 0.5"] < mean["reverse 0.5"] / 100 and mean["dense"] == 0
    assert found["results"]["own 0.5"]["right"] == "11111" != found["results"]["reverse 0.5"]["right"]
    assert list(found["evidence"]) == ["own", "answers"]
    assert list(found["evidence"]["own"]["harm"]) == ["mass", "ablation"]
    said = capsys.readouterr().out
    assert "points lost (95 %)" in said and "left out" not in said


def test_what_no_time_is_left_for_is_said(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pareto.json"
    more = ["--targets", "own", "--methods", "ablation", "--calibrate", "1", "--n", "2", "--seconds", "0"]
    assert main([*files, *WORDS, *more, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["results"]) == ["dense"] and len(found["left_out"]) == 4
    assert "left out for time: own 0.5, own 0.8" in capsys.readouterr().out


def test_a_budget_below_every_window_is_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*files, *WORDS, "--budgets", "0.01", "--targets", "answers", "--calibrate", "1"]
    assert main([*words, "--out", str(tmp_path / "f")]) == 2
    assert "sink and window alone take more than 0.01" in capsys.readouterr().err
