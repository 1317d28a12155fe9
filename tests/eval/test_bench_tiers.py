# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the host tier: what it refuses to call a figure, and its table. No server runs here."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from eval import bench_tiers
from eval.bench_tiers import Prompts, flags, loads, table
from eval.gpu.ask import NotMeasured, Reply
from redknot_sglang.measure.launch import Server

ARGS = argparse.Namespace(
    pause=0.0, requests=4, token_bytes=100, tail_tokens=8, chunk=512, shape=None, stream_tokens=16, stock_flags=""
)


def answer(host: int, device: int) -> Reply:
    """A reply of a server that found so many tokens in each tier."""
    return Reply(0.5, [{"cached_tokens": host + device, "cached_tokens_details": {"host": host, "device": device}}])


class Url:
    """All that `loads` reads of a server of stock SGLang."""

    url = "http://nowhere"


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


def test_a_device_holds_one_prompt_beside_the_streams_and_not_two() -> None:
    common, own = flags(4096, ARGS)
    (device,) = (int(flag.split("=")[1]) for flag in common if flag.startswith("--max-total-tokens"))
    streams = 4 * (64 + ARGS.stream_tokens)
    assert 4096 + 8 + streams < device < 2 * (4096 + 8)
    assert own["stock"] == [] and "--redknot-mode=exact" in own["redknot"]


def test_the_table_shows_a_side_that_is_alone() -> None:
    side = {"cold_s": [1.0, 2.0], "median_s": 0.25, "bytes": 2e6, "load_s": 0.001}
    text = table({4096: {"redknot": side}})
    assert "1500.0" in text and "250.0" in text and "2.0" in text
    both = table(json.loads(json.dumps({4096: {"stock": {**side, "median_s": 0.5, "bytes": 8e6}, "redknot": side}})))
    assert "0.50" in both and "25.0 %" in both
