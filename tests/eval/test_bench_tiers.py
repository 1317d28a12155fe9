# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the host tier: what it refuses to call a figure, and its table. No server runs here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from eval import bench_tiers
from eval.bench_tiers import Prompts, commands, loads, table
from eval.gpu.ask import NotMeasured, Reply
from eval.servers import Served
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server

ARGS = argparse.Namespace(
    pause=0.0, requests=4, token_bytes=100, tail_tokens=8, chunk=512, stream_tokens=16, stock_flags="", mem_fraction=0.8
)


def answer(host: int, device: int) -> Reply:
    """A reply of a server that found so many tokens in each tier."""
    return Reply(0.5, [{"cached_tokens": host + device, "cached_tokens_details": {"host": host, "device": device}}])


class Url:
    """All that `loads` reads of a server of stock SGLang."""

    url = "http://nowhere"


UP = Server("http://nowhere", None, Path())  # type: ignore[arg-type]


def run(monkeypatch: pytest.MonkeyPatch, host: int, device: int) -> dict[str, Any]:
    """`loads` of stock over prompts of 100 tokens, each request answered alike."""
    monkeypatch.setattr(bench_tiers, "generate", lambda *_: answer(host, device))
    server: Any = Url()
    assert not isinstance(server, Server)
    return loads(server, "stock", Prompts(1000, 8), 100, ARGS)


def test_stock_moves_every_token_of_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(monkeypatch, host=100, device=0)
    assert (found["bytes"], found["median_s"], len(found["rows"])) == (100 * 100, 0.5, 4)


@pytest.mark.parametrize(("host", "device"), [(0, 100), (50, 50), (0, 0)])
def test_a_prompt_that_was_not_on_the_host_is_no_figure(
    monkeypatch: pytest.MonkeyPatch, host: int, device: int
) -> None:
    with pytest.raises(NotMeasured, match="of a prompt of 100 tokens"):
        run(monkeypatch, host, device)


def test_prompts_are_alike_and_their_tails_never(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = Prompts(1000, 8)
    first, again, other = prompts.next(50, 0), prompts.next(50, 0), prompts.next(50, 1)
    assert first[:50] == again[:50] and first[50:] != again[50:]
    assert first[:50] != other[:50] and len(other) == 58


def _flag(command: list[str], name: str) -> str:
    """The value with which a server starts, the last."""
    return [flag.partition("=")[2] for flag in command if flag.partition("=")[0] == name][-1]


def test_a_device_holds_one_prompt_beside_the_streams_and_not_two() -> None:
    made = commands(Served(None, None, "", 1), 4096, ARGS)
    assert list(made) == ["redknot"] and "--redknot-mode=exact" in made["redknot"]
    streams = 4 * (64 + ARGS.stream_tokens)
    assert 4096 + 8 + streams < int(_flag(made["redknot"], "--max-total-tokens")) < 2 * (4096 + 8)


@pytest.mark.parametrize(("length", "stated"), [(32768, False), (131072, True)])
def test_a_shape_serves_prompts_beyond_the_positions_of_its_config(length: int, stated: bool) -> None:
    """Qwen3-8B's config names 40,960, and SGLang refuses a longer context length."""
    made = commands(Served("qwen3-8b", None, "one_of_eight.json", 1), length, ARGS)
    assert list(made) == ["stock", "redknot"]
    for command in made.values():
        context = int(_flag(command, "--context-length"))
        assert context >= length + ARGS.tail_tokens + 1
        override = "--json-model-override-args=" + json.dumps({"max_position_embeddings": context})
        assert (override in command) == stated
        assert float(_flag(command, "--mem-fraction-static")) == ARGS.mem_fraction


def test_what_was_measured_stays_when_a_later_part_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the other server is measured all the same."""

    def fails(*_: Any) -> dict[str, float]:
        raise NotMeasured("the streams ended")

    figures = {"cold_s": [1.0], "median_s": 0.5, "bytes": 1e6}
    monkeypatch.setattr(bench_tiers, "start", lambda stack, flags, *_: dict.fromkeys(flags, UP))
    monkeypatch.setattr(bench_tiers, "alone", lambda up, side: nullcontext(up[side]))
    monkeypatch.setattr(bench_tiers, "loads", lambda *_: figures)
    monkeypatch.setattr(bench_tiers, "decoding", fails)
    argv = ["bench", "--shape", "qwen3-8b", "--lengths", "128,256", "--json", str(tmp_path / "t.json")]
    monkeypatch.setattr(sys, "argv", argv)
    bench_tiers.main()
    lengths = json.loads((tmp_path / "t.json").read_text())["lengths"]
    expected = {"loads": figures, "error": "the streams ended"}
    assert lengths == {length: {"stock": expected, "redknot": expected} for length in ("128", "256")}
    assert "stock, 128 tokens: the streams ended" in capsys.readouterr().out


@pytest.mark.parametrize("together", [False, True])
def test_servers_start_one_by_one_or_at_once(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    done: list[Any] = []

    def start(stack: ExitStack, flags: Mapping[str, Sequence[str]], *_: Any) -> dict[str, Server | ServerError]:
        done.append(("start", *flags))
        stack.callback(done.append, ("end", *flags))
        return {side: ServerError("no GPU") if side == "c" else UP for side in flags}

    @contextmanager
    def alone(up: Mapping[str, Server], side: str) -> Iterator[Server]:
        done.append((side, *up))
        yield up[side]

    monkeypatch.setattr(bench_tiers, "start", start)
    monkeypatch.setattr(bench_tiers, "alone", alone)
    flags: dict[str, list[str]] = {side: [] for side in "abc"}
    found = {side: str(server) for side, server in bench_tiers.servers(flags, {}, Path("logs"), together)}
    assert list(found) == ["a", "b", "c"] and found["c"] == "no GPU"
    if together:
        assert done == [("start", "a", "b", "c"), ("a", "a", "b"), ("b", "a", "b"), ("end", "a", "b", "c")]
    else:
        waves = [[("start", side), (side, side), ("end", side)] for side in "ab"]
        assert done == [*waves[0], *waves[1], ("start", "c"), ("end", "c")]


def test_the_table_shows_a_side_that_is_alone() -> None:
    side = {"loads": {"cold_s": [1.0, 2.0], "median_s": 0.25, "bytes": 2e6, "load_s": 0.001}}
    text = table({4096: {"stock": {"error": "no GPU"}, "redknot": side}})
    assert "1500.0" in text and "250.0" in text and "2.0" in text and "\n   4096" not in text.replace("redknot", "")
    stock = {"loads": {**side["loads"], "median_s": 0.5, "bytes": 8e6}, "decoding": {"host_s": 1.5, "device_s": 1.0}}
    both = table({4096: {"stock": stock, "redknot": side}})
    assert "0.50" in both and "25.0 %" in both and "1.500" in both
