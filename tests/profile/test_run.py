# SPDX-License-Identifier: Apache-2.0
"""A whole profile of the model with known heads: what it writes, and that an interrupted one goes on."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.errors import HeadMapError, ProfileError
from redknot_sglang.heads import HeadMap, ModelInfo, load_head_map
from redknot_sglang.profile import run
from redknot_sglang.profile.record import KEYS, beside, load_record, save_record
from redknot_sglang.profile.run import Plan, profile, write
from redknot_sglang.profile.select import Target
from redknot_sglang.profile.study import Study
from redknot_sglang.work_file import WorkFile
from tests.profile.known_heads import GLOBAL, SINK, WINDOW, known_study

METHODS = ("mass", "distortion", "gates", "ablation", "greedy")
# 2 of 6 heads global, and sink + window of the others.
BUDGET = Target(170, kv=1 / 3 + 2 / 3 * (SINK + WINDOW) / 170)
MODEL = {"name": "known", "config_sha256": "0" * 64, "load_format": "auto"}


def plan(target: Target = BUDGET, methods: tuple[str, ...] = METHODS) -> Plan:
    return Plan(target, methods, "output", 3, MODEL, ModelInfo(model_type="llama"))


def study(work: WorkFile | None = None) -> Study:
    return known_study(examples=4, work=work)


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    methods = {name: {**found, "seconds": 0} for name, found in record["methods"].items()}
    return {**record, "methods": methods}


@pytest.fixture(scope="module")
def whole() -> tuple[HeadMap, dict[str, Any], bytes]:
    return profile(study(), plan())


def classes(head_map: HeadMap) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(head_map.num_layers) for head in head_map.global_heads(layer)]


def test_the_map_has_the_known_classes(whole: tuple[HeadMap, dict[str, Any], bytes]) -> None:
    head_map, record, _ = whole
    assert classes(head_map) == GLOBAL
    assert (head_map.window, head_map.sink) == (WINDOW, SINK)
    assert record["points"][record["chosen"]]["layers"] == ["LGL", "LLG"]
    assert head_map.provenance["method"] == "profile" and head_map.provenance["ranked_by"] in METHODS
    assert head_map.compression(170) == pytest.approx(0.4)


def test_controls_of_the_same_size_lose(whole: tuple[HeadMap, dict[str, Any], bytes]) -> None:
    points = whole[1]["points"]
    taken = points[whole[1]["chosen"]]
    controls = [p for p in points if ":" in p["method"]]
    assert [p["method"].split(":")[0] for p in controls] == ["random", "reverse"]
    for control in controls:
        assert (control["global"], control["window"], control["kv"]) == (2, WINDOW, taken["kv"])
        assert control["loss"] > taken["loss"] + 1


def test_a_loss_finds_the_fewest_bytes() -> None:
    head_map, record, _ = profile(study(), plan(Target(170, max_loss=0.01), ("ablation",)))
    assert classes(head_map) == GLOBAL
    assert record["target"] == {"kv": None, "max_loss": 0.01, "at": 170, "loss": "answers"}


def test_where_no_loss_is_allowed_all_heads_may_stay_global() -> None:
    """Windows of one token break the heads that look at the token before."""
    tight = known_study(examples=4, window=1)
    head_map, record, _ = profile(tight, plan(Target(170, max_loss=0.0), ("mass",)))
    assert record["points"][record["chosen"]]["loss"] <= record["dense"]["loss"]
    assert len(classes(head_map)) >= 4


def test_files(whole: tuple[HeadMap, dict[str, Any], bytes], tmp_path: Path) -> None:
    out = tmp_path / "my.map.json"
    files = write(out, *whole)
    assert [file.name for file in files] == [
        "my.map.json", "my.map.profile.json", "my.map.pareto.json", "my.map.pareto.png",
    ]  # fmt: skip
    assert load_head_map(out) == whole[0]
    record = load_record(files[1])
    assert record == json.loads(json.dumps(whole[1])) and tuple(record) == KEYS
    curve = json.loads(files[2].read_text())
    assert curve["points"] == record["points"] and curve["pareto"] == record["pareto"]
    assert files[3].read_bytes().startswith(b"\x89PNG")
    assert beside(out, "profile", "json") == files[1]


def test_the_record_has_what_its_schema_says(whole: tuple[HeadMap, dict[str, Any], bytes]) -> None:
    record = whole[1]
    assert list(record["methods"]) == list(METHODS)
    for name, found in record["methods"].items():
        assert set(found) == {"harm", "unit", "source", "seconds", "detail"}
        windows = [4, WINDOW, 32] if name in ("mass", "distortion") else [WINDOW]
        assert list(found["harm"]) == [str(window) for window in windows]
        assert all(len(matrix) == 2 and {len(row) for row in matrix} == {3} for matrix in found["harm"].values())
    assert [len(row) for row in record["methods"]["mass"]["detail"]["query_heads"]["16"]] == [6, 6]
    assert record["points"][0]["method"] == "dense" and record["points"][0]["loss"] == record["dense"]["loss"]
    assert record["reuse"] is None and record["data"]["examples"] == 4


class Killed(Exception):
    """In place of a kill."""


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[HeadMap, dict[str, Any], bytes, int]:
    work = WorkFile(None, "base")
    return *profile(quick(work), plan()), work.measured


def quick(work: WorkFile) -> Study:
    return replace(known_study(examples=2, work=work), gate_steps=10)


@pytest.mark.parametrize("measurements", [0, 2, 5, 20])
def test_an_interrupted_run_goes_on(
    measurements: int,
    uninterrupted: tuple[HeadMap, dict[str, Any], bytes, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "map.json.work"
    first = WorkFile(file, "base")
    once = first.once

    def kill(what: object, measure: Any) -> Any:
        if first.measured == measurements:
            raise Killed
        return once(what, measure)

    monkeypatch.setattr(first, "once", kill)
    with pytest.raises(Killed):
        profile(quick(first), plan())
    with file.open("a") as cut:
        cut.write('["half a li')  # what a kill leaves of a line
    second = WorkFile(file, "base")
    head_map, record, picture = profile(quick(second), plan())
    assert measurements + second.measured == uninterrupted[3]
    assert (head_map, picture) == (uninterrupted[0], uninterrupted[2])
    assert without_seconds(record) == without_seconds(uninterrupted[1])
    third = WorkFile(file, "base")
    profile(quick(third), plan())
    assert third.measured == 0


def test_a_budget_that_no_window_meets_is_refused_before_anything_runs() -> None:
    work = WorkFile(None, 0)
    with pytest.raises(ProfileError, match="sink and window alone take 0.1 of the KV bytes at 170 tokens"):
        profile(study(work), plan(Target(170, kv=0.05)))
    assert work.measured == 0


def test_examples_too_long_for_gates() -> None:
    with pytest.raises(ProfileError, match="raise --gate-tokens"):
        profile(replace(study(), gate_tokens=50), plan(methods=("gates",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a redknot-profile of version 1"),
        ({"version": 2}, "is not a redknot-profile of version 1"),
        ({"chosen": 99}, "there is no point 99"),
        ({"pareto": [0, -1]}, "must be at least 0"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"methods": []}, "methods must be an object"),
    ],
)
def test_broken_records(
    change: dict[str, Any], message: str, whole: tuple[HeadMap, dict[str, Any], bytes], tmp_path: Path
) -> None:
    file = tmp_path / "map.profile.json"
    file.write_text(json.dumps({**whole[1], **change}))
    with pytest.raises(HeadMapError, match=message):
        load_record(file)


def test_what_is_not_a_number_is_not_written(whole: tuple[HeadMap, dict[str, Any], bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_record({**whole[1], "dense": {"loss": float("nan")}}, tmp_path / "f")


def test_the_package_imports_no_sglang() -> None:
    found = set()
    for file in (Path(run.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    assert "torch" in found and "sglang" not in found
