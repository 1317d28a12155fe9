# SPDX-License-Identifier: Apache-2.0
"""The benchmark of prefill and decode servers: what it refuses to call a figure, its servers and its table. No server runs here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from eval import bench_apart
from eval.bench_apart import Pair, commands, measure, table
from eval.gpu.ask import NotMeasured
from eval.servers import Served
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server

ARGS = argparse.Namespace(
    requests=2, tail_tokens=10, decode_steps=4, chunk=512, mem_fraction=0.8, ib_device="", stock_flags="--x=1"
)


class Answering(Pair):
    """Servers that answer at once and have cached what `cached` says. Each answer sends its prompt: 10 bytes a token, stock 100."""

    def __init__(self, cached: float = 1.0, cold: int = 0) -> None:
        server = Server("http://nowhere", None, Path())  # type: ignore[arg-type]
        super().__init__(server, server, 1)
        self.__dict__.update(asked=[], cached=cached, cold=cold)

    def ask(self, prompt: Sequence[int], answer: int) -> tuple[float, int]:
        asked: list[list[int]] = self.__dict__["asked"]
        known = any(prompt[: len(other)] == other for other in asked)
        asked.append(list(prompt))
        had = int(self.__dict__["cached"] * len(prompt)) if known else self.__dict__["cold"]
        return 1.0 + answer, had

    def sent_bytes(self) -> dict[str, int] | None:
        tokens = sum(map(len, self.__dict__["asked"]))
        return {"sent": 10 * tokens, "stock": 100 * tokens}


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_apart, "flush", lambda url: None)


def test_a_step_is_the_difference_of_two_answers() -> None:
    pair = Answering()
    found = measure(pair, 1000, 100, ARGS)
    assert found["cold_s"] == found["cached_s"] == [2.0, 2.0] and found["step_s"] == [1.0, 1.0]
    assert found["bytes"]["sent"] / found["bytes"]["stock"] == pytest.approx(0.1)
    # Cold, the next turn, and the two answers whose difference is timed; and one to warm up.
    assert [len(prompt) for prompt in pair.__dict__["asked"]] == [100, *(2 * [100, 110, 100, 100])]


@pytest.mark.parametrize(("cached", "cold", "why"), [(0.5, 0, "only 55 of 100"), (1.0, 7, "7 tokens of a new prompt")])
def test_a_prompt_in_the_wrong_place_is_no_figure(cached: float, cold: int, why: str) -> None:
    with pytest.raises(NotMeasured, match=why):
        measure(Answering(cached, cold), 1000, 100, ARGS)


def test_the_second_gpu_decodes_and_the_first_says_where_it_is() -> None:
    for side in bench_apart.SIDES:
        made = commands(Served("qwen3-8b", None, "one_of_eight.json", 1), side, 8192, 8998, ARGS)
        assert "--base-gpu-id=1" in made["decode"] and "--base-gpu-id=1" not in made["prefill"]
        assert "--disaggregation-bootstrap-port=8998" in made["prefill"]
        for flags in made.values():
            assert ("--redknot" in flags) == (side == "redknot") and ("--x=1" in flags) == (side == "stock")
            (context,) = [int(flag.partition("=")[2]) for flag in flags if flag.startswith("--context-length=")]
            assert context >= 8192 + ARGS.tail_tokens + 1
    assert "--base-gpu-id=1" not in commands(Served(None, None, "", 1), "stock", 512, 8998, ARGS)["decode"]


def test_a_pair_that_fails_leaves_the_other_s_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launched(served: Served, side: str, *_: Any) -> Any:
        if side == "stock":
            raise ServerError("no transfer engine")
        return nullcontext(Answering())

    monkeypatch.setattr(bench_apart, "launched", launched)
    monkeypatch.setattr(sys, "argv", ["bench", "--lengths", "128,256", "--json", str(tmp_path / "a.json")])
    bench_apart.main()
    sides = json.loads((tmp_path / "a.json").read_text())["sides"]
    assert sides["stock"] == {"error": "no transfer engine"} and list(sides["redknot"]) == ["128", "256"]
    assert "stock: no transfer engine" in capsys.readouterr().out


def test_the_table_compares_with_stock() -> None:
    stock = {"cold_s": [3.0], "cached_s": [1.0], "step_s": [0.02]}
    ours = {"cold_s": [1.5], "cached_s": [0.1], "step_s": [0.02], "bytes": {"sent": 14.0, "stock": 100.0}}
    text = table({"stock": {"64": stock}, "redknot": {"64": ours}})
    assert "1500.0 (2.00x)" in text and "100.0 (10.00x)" in text and "20.0 (1.00x)" in text and "14.0 %" in text
    assert "(" not in table({"stock": {"error": "no"}, "redknot": {"64": ours}}).splitlines()[-1]
