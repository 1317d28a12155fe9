# SPDX-License-Identifier: Apache-2.0
"""Import of DuoAttention's tables of gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads import HeadMap, load_head_map

TABLE = "9.96e-01\t0.0\t5.0e-01\t6.1e-01\n0.000000e+00\t1.02\t-0.01\t4.99e-01\n"
CONFIG = {"model_name": "models/Some-Model-8B/", "sink_size": 128, "recent_size": 256, "threshold": 0.1}


def imported(tmp_path: Path, table: str = TABLE, config: object = CONFIG, **options: Any) -> HeadMap:
    """The map of a table with a companion config.json (none if `config` is None, verbatim if it is text)."""
    file = tmp_path / "full_attention_heads.tsv"
    file.write_text(table)
    (tmp_path / "config.json").unlink(missing_ok=True)
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return load_head_map(file, **options)


def failure(tmp_path: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(HeadMapError) as caught:
        imported(tmp_path, *args, **kwargs)
    start = f"{tmp_path / 'full_attention_heads.tsv'}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


def test_import(tmp_path: Path) -> None:
    head_map = imported(tmp_path)
    assert head_map.is_global == ((True, False, False, True), (False, True, False, False))
    assert (head_map.window, head_map.sink) == (256, 128)
    assert head_map.provenance["method"] == "import"
    assert head_map.provenance["format"] == "DuoAttention TSV"
    assert head_map.provenance["threshold"] == 0.5  # the one in config.json was for another purpose
    assert head_map.provenance["source"] == "full_attention_heads.tsv"
    assert head_map.provenance["source_model"] == "Some-Model-8B"


def test_threshold_is_exclusive_and_gates_are_clipped(tmp_path: Path) -> None:
    assert imported(tmp_path, threshold=0.499).is_global[1] == (False, True, False, False)
    assert imported(tmp_path, threshold=0.498).is_global[1] == (False, True, False, True)
    assert imported(tmp_path, threshold=0.0).is_global[0] == (True, False, True, True)
    assert imported(tmp_path, threshold=1.0).global_share == 0.0


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_every_gate_lands_in_its_place(
    tmp_path_factory: pytest.TempPathFactory, gates: list[list[float]], threshold: float
) -> None:
    table = "".join("\t".join(f"{gate:.18e}" for gate in row) + "\n" for row in gates)
    head_map = imported(tmp_path_factory.mktemp("duo"), table, threshold=threshold)
    assert head_map.is_global == tuple(tuple(gate > threshold for gate in row) for row in gates)


@pytest.mark.parametrize("table", ["0.9", "0.9\n", "\n0.9\n\n", "0.9\r\n"])
def test_one_layer_of_one_head(table: str, tmp_path: Path) -> None:
    assert imported(tmp_path, table).is_global == ((True,),)


def test_options_serve_where_the_config_does_not(tmp_path: Path) -> None:
    head_map = imported(tmp_path, config=None, window=64, sink=0)
    assert (head_map.window, head_map.sink) == (64, 0)
    head_map = imported(tmp_path, config={"sink_size": 7}, window=64)
    assert (head_map.window, head_map.sink) == (64, 7)
    head_map = imported(tmp_path, config="not JSON at all", window=64, sink=0)
    assert (head_map.window, head_map.sink) == (64, 0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("0.1\t0.2\n0.3\n", "line 2 (layer 1) has 1 heads, layer 0 has 2"),
        ("0.1\t0.2\n\n0.3\t0.4\t0.5\n", "line 3 (layer 1) has 3 heads, layer 0 has 2"),
        ("0.1\tx\n", "line 1 (layer 0), head 1: str 'x' is not a number; cells are separated by tabs"),
        ("0.1\t0.2\n0.3 0.4\n", "line 2 (layer 1), head 0: str '0.3 0.4' is not a number"),
        ("0.1\t0.2\t\n", "line 1 (layer 0), head 2: str '' is not a number"),
        ("0.1\tnan\n", "line 1 (layer 0), head 1: the gate is nan, it must be a finite number"),
        ("nan\t0.1\n", "line 1 (layer 0), head 0: the gate is nan, it must be a finite number"),
        ("0.1\t0.2\n0.3\tinf\n", "line 2 (layer 1), head 1: the gate is inf, it must be a finite number"),
    ],
)
def test_wrong_tables(table: str, message: str, tmp_path: Path) -> None:
    assert failure(tmp_path, table).startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is a DuoAttention table without its config.json, so window and sink are unknown"),
        ("{", "config.json beside it: is not valid JSON"),
        (
            {"sink_size": 4},
            "config.json beside it has no 'recent_size': give it with `redknot heads import SRC --window",
        ),
        (
            {"recent_size": 4},
            "config.json beside it has no 'sink_size': give it with `redknot heads import SRC --sink",
        ),
        (
            {"sink_size": -1, "recent_size": 4},
            "sink_size in config.json beside it must be at least 0, got int -1",
        ),
        (
            {"sink_size": 0, "recent_size": "4"},
            "recent_size in config.json beside it must be an integer, got str '4'",
        ),
        (
            {"sink_size": 0, "recent_size": 0},
            "recent_size in config.json beside it must be at least 1, got int 0",
        ),
    ],
)
def test_wrong_companions(config: object, message: str, tmp_path: Path) -> None:
    assert failure(tmp_path, config=config).startswith(message)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_wrong_thresholds(threshold: float, tmp_path: Path) -> None:
    assert failure(tmp_path, threshold=threshold) == f"threshold must be within 0 to 1, got {threshold}"


@given(st.lists(st.lists(st.floats(-0.1, 1.1), min_size=4, max_size=4), min_size=1, max_size=6), st.integers(0, 100))
def test_a_share_takes_the_largest_gates(
    tmp_path_factory: pytest.TempPathFactory, gates: list[list[float]], percent: int
) -> None:
    table = "".join("\t".join(f"{gate:.18e}" for gate in row) + "\n" for row in gates)
    head_map = imported(tmp_path_factory.mktemp("duo"), table, share=percent / 100)
    count = sum(map(sum, head_map.is_global))
    assert count == percent * 4 * len(gates) // 100
    pairs = [
        (g, min(1, max(0, x)))
        for row, found in zip(gates, head_map.is_global, strict=True)
        for x, g in zip(row, found, strict=True)
    ]
    taken, left = ([value for is_global, value in pairs if is_global is wanted] for wanted in (True, False))
    if taken and left:
        assert min(taken) >= max(left)
    assert head_map.provenance["global_share"] == percent / 100 and "threshold" not in head_map.provenance


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_wrong_shares(share: float, tmp_path: Path) -> None:
    assert failure(tmp_path, share=share) == f"the share of global heads must be within 0 to 1, got {share}"
    assert failure(tmp_path, share=0.5, threshold=0.5) == (
        "a threshold and a share of global heads exclude each other: give one of them"
    )
