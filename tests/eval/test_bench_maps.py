# SPDX-License-Identifier: Apache-2.0
"""Which maps are compared, that calibration prompts are refused, and a tiny run of both profile benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval import bench_maps, bench_profile
from redknot_sglang.profile.record import FORMAT, KEYS, VERSION

# The shipped map as a ranking, and its reverse.
SHIPPED = json.loads((bench_maps.MODEL / "head_map.json").read_text())["layers"]
HARM = [[float(mark == "G") + 0.01 * head for head, mark in enumerate(row)] for row in SHIPPED]


def record(seeds: list[int], kv: float | None = 0.3) -> dict[str, Any]:
    def point(count: int, share: float, loss: float) -> dict[str, Any]:
        return {"method": "mass", "window": 128, "sink": 4, "global": count, "kv": share, "loss": loss}

    found: dict[str, Any] = {
        **dict.fromkeys(KEYS, {}), "format": FORMAT, "version": VERSION, "chosen": 0, "pareto": [], "reuse": None,
        "model": {"num_layers": 6, "num_kv_heads": 4}, "target": {"kv": kv, "max_loss": None, "at": 4096},
        "data": {"source": "tasks", "lengths": [256], "seeds": seeds}, "methods": {"mass": {"harm": {"128": HARM}}},
        "points": [point(0, 0.03, 3.0), point(6, 0.27, 0.1), point(6, 0.3, 0.1), point(9, 0.4, 0.0)],
    }  # fmt: skip
    return found


def test_maps() -> None:
    maps = bench_maps.maps_of(record([1000, 1001]), 2)
    assert list(maps) == [
        "dense", "shipped", "mass", "reverse:mass", "random:0, 6 global, window 128", "random:1, 6 global, window 128",
    ]  # fmt: skip
    assert maps["dense"].all_global and maps["mass"].fingerprint == maps["shipped"].fingerprint
    sizes = {name: sum(map(sum, found.is_global)) for name, found in maps.items()}
    assert set(sizes.values()) == {24, 6}
    global_heads, reverse = maps["mass"].is_global, maps["reverse:mass"].is_global
    assert not any(
        a and b for mine, other in zip(global_heads, reverse, strict=True) for a, b in zip(mine, other, strict=True)
    )
    with pytest.raises(ValueError, match="with --target-kv"):
        bench_maps.maps_of(record([1000, 1001], kv=None), 2)


def test_prompts_of_the_calibration_are_refused() -> None:
    found = record([1000, 1003])
    for first, count in ((1000, 1), (990, 11), (1003, 5), (0, 2000)):
        with pytest.raises(ValueError, match="calibration used the seeds 1000 to 1003"):
            bench_maps.check_seeds(found, first, count, [256])
    bench_maps.check_seeds(found, 0, 1000, [256])
    bench_maps.check_seeds(found, 1004, 9, [256])
    bench_maps.check_seeds(found, 1000, 1, [512])


def test_random_maps_are_pooled() -> None:
    rows = [
        {"map": f"random:{i}, x", "global": 6, "window": 128, "mean": mean, "share": {"a": mean}, "n": 10}
        for i, mean in enumerate((0.0, 0.5, 1.0))
    ]
    (pooled,) = bench_maps.pooled_randoms([{"map": "mass"}, *rows], ["a"])
    assert (pooled["mean"], pooled["share"], pooled["n"]) == (0.5, {"a": 0.5}, 30)
    assert pooled["interval_95"] == pytest.approx((0.0, 1.0), abs=0.1) and pooled["interval_95"][0] >= 0
    (single,) = bench_maps.pooled_randoms(rows[:1], ["a"])
    assert single["interval_95"] == (0.0, 1.0)


def test_tiny_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "map.profile.json").write_text(json.dumps(record([1000, 1001])))
    words = [
        "--n",
        "2",
        "--lengths",
        "256",
        "--tasks",
        "lookup",
        "--random",
        "1",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(
        sys, "argv", ["", str(tmp_path / "map.profile.json"), *words, "--json", str(tmp_path / "out.json")]
    )
    bench_maps.main()
    found = json.loads((tmp_path / "out.json").read_text())
    cells = {cell["map"]: cell for cell in found["cells"]}
    assert cells["dense"]["hits"] == cells["mass"]["hits"] == "11" and cells["reverse:mass"]["hits"] == "00"
    rows = {row["map"]: row for row in found["summary"]}
    assert rows["reverse:mass"]["mean_loss_points"] == 100 and rows["mass"]["interval_95"][1] == 1
    assert found["maps"]["shipped"] == SHIPPED and found["calibration"]["data"]["seeds"] == [1000, 1001]
    assert "random, all 1, 6 global, window 128" in capsys.readouterr().out


def test_tiny_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((bench_profile.SHAPES / "qwen3-8b" / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 99, "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--shape", str(tmp_path), "--tokens", "300", "--chunk", "64", "--rows", "32", "--document", "50"]
    monkeypatch.setattr(sys, "argv", ["", *words, "--json", str(tmp_path / "out.json")])
    bench_profile.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["what"].split(",")[0] for row in found["measured"]] == [
        "mass",
        "distortion",
        "loss under a map",
        "reuse",
    ]
    assert found["architecture"] == "Qwen3ForCausalLM" and all("300 tokens" in row["what"] for row in found["measured"])
