# SPDX-License-Identifier: Apache-2.0
"""Head maps by name, and the shapes that come with the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.gpu.maps import describe, find_map, heads, make_map, with_retrieval
from eval.servers import ROOT
from redknot_sglang.errors import CliError
from redknot_sglang.heads.head_map import load_head_map

SHAPES = sorted(path for path in (ROOT / "shapes").iterdir())
QWEN = ROOT / "shapes" / "qwen3-8b"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.name)
def test_every_shape_has_its_maps(shape: Path, tmp_path: Path) -> None:
    config = json.loads((shape / "config.json").read_text())
    for name in ("one_of_eight", "all_global", "rho.25-w1024"):
        head_map = load_head_map(find_map(name, shape, tmp_path))
        head_map.check_model(config["num_hidden_layers"], config["num_key_value_heads"], config["model_type"])
        assert head_map.model.hidden_size == config["hidden_size"]
    told = describe(find_map("one_of_eight", shape, tmp_path))
    assert told == {"rho": 0.125, "window": 256, "sink": 4}


@pytest.mark.parametrize(("rho", "heads"), [(".125", 1), ("0.25", 2), (".5", 4)])
@pytest.mark.parametrize("window", [256, 1024, 4096])
def test_a_share_of_eight_heads_is_the_same_in_every_layer(rho: str, heads: int, window: int, tmp_path: Path) -> None:
    path = find_map(f"rho{rho}-w{window}", QWEN, tmp_path)
    assert path.parent == tmp_path
    head_map = load_head_map(path)
    assert (head_map.window, head_map.sink) == (window, 4)
    assert [head_map.num_global(layer) for layer in range(36)] == [heads] * 36


@given(st.floats(0.05, 1.0))
def test_global_heads_lie_evenly(rho: float) -> None:
    head_map = make_map(ROOT / "model", rho, 64)
    flat = [value for row in head_map.is_global for value in row]
    assert sum(flat) == max(1, round(rho * len(flat)))
    at = [i for i, value in enumerate(flat) if value]
    gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
    if gaps:
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("name", ["config", "unknown", "rho2-w64", "rho.001-w64", "rho.5-w0", "rho.5"])
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CliError, match="rho"):
        find_map(name, ROOT / "model", tmp_path)


def test_a_map_gets_retrieval_heads(tmp_path: Path) -> None:
    path = find_map("one_of_eight", QWEN, tmp_path)
    found = load_head_map(with_retrieval(path, heads("12.0,20.3"), tmp_path))
    assert found.retrieval == ((12, 0), (20, 3)) and found.is_global == load_head_map(path).is_global
    assert with_retrieval(path, (), tmp_path) == path
    with pytest.raises(CliError, match="--retrieval: retrieval head 36.0: there are 36 layers"):
        with_retrieval(path, heads("36.0"), tmp_path)
