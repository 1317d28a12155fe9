# SPDX-License-Identifier: Apache-2.0
"""The benchmark of ranks: flags, and the table. tests/serving/test_tensor_parallel.py starts such servers."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from eval import bench_ranks
from eval.servers import Served
from redknot_sglang.errors import ServerError


def test_every_rank_gets_the_same_bytes() -> None:
    served = Served("qwen3-8b", None, "one_of_eight.json", 1)
    one, two = (bench_ranks.flags_of(served, ranks, 1 << 34) for ranks in (1, 2))
    assert [flag for flag in one if flag not in two] == ["--tp-size=1"]
    assert "--redknot-kv-budget=17179869184" in two and any(flag.endswith("one_of_eight.json") for flag in two)


def test_a_server_that_does_not_start_is_named_and_the_next_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(flags: list[str], *_: Any, **__: Any) -> Any:
        if "--tp-size=2" in flags and any("all_global" in flag for flag in flags):
            raise ServerError("one GPU only")
        return nullcontext()

    def held(_: Any, __: int, ranks: int) -> dict[str, Any]:
        return {"tokens": 1000 * ranks, "global_heads": [3] * ranks if ranks > 1 else None}

    monkeypatch.setattr(bench_ranks, "launch", launch)
    monkeypatch.setattr(bench_ranks, "held", held)
    monkeypatch.setattr(sys, "argv", ["bench", "--shape", "qwen3-8b", "--json", str(tmp_path / "r.json")])
    bench_ranks.main()
    maps = json.loads((tmp_path / "r.json").read_text())["maps"]
    assert maps["all_global"]["2"] == {"error": "one GPU only"} and maps["one_of_eight"]["2"]["tokens"] == 2000
    said = capsys.readouterr().out
    assert "all_global, 2 ranks: one GPU only" in said and "2.00x" in said and "3, 3" in said
