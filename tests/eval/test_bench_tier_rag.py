# SPDX-License-Identifier: Apache-2.0
"""The benchmark of documents that do not all fit: sizes, what is asked of each server, and a small run with real servers."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import bench_tier_rag
from eval.rag.noise import NoiseCorpus, draw, permuted
from eval.rag.traffic import prompt_of
from eval.servers import Served
from eval.tier_rag.options import check, make_parser
from eval.tier_rag.sides import commands, documents_held, prompt_tokens
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import Server
from tests.eval.rag.fake_native import FakeNative, Reply, fake_native, segmented_report

CPU = Served(None, None, "", 1)
GPU = Served("qwen3-8b", None, "one_of_eight.json", 1)
MAP = {"sink": 4, "window": 256}


def parse(*words: str) -> argparse.Namespace:
    args = make_parser("").parse_args(["--json=t.json", *words])
    check(args)
    return args


def pools(global_slots: int, local_slots: int) -> dict[str, dict[str, int]]:
    return {"global": {"slots": global_slots}, "local": {"slots": local_slots}}


@pytest.mark.parametrize(
    ("slots", "policy", "fit"),
    [((20480, 5200), "boundary:16", 10), ((20480, 1300), "boundary:16", 5), ((20480, 5200), "blend:0.08", 2)],
)
def test_a_document_takes_global_slots_of_all_tokens_and_local_ones_by_policy(
    slots: tuple[int, int], policy: str, fit: int
) -> None:
    assert documents_held(pools(*slots), MAP, 2048, policy) == fit


def test_documents_are_drawn_by_weight_each_once_and_in_any_order() -> None:
    rng, first, drawn = random.Random(1), Counter[int](), Counter[int]()
    for _ in range(2000):
        found = draw(rng, [8.0, 1.0, 1.0], 2)
        assert len(set(found)) == 2
        first[found[0]] += 1
        drawn.update(found)
    # Exactly, 0.8 + 0.2 * 8/9 of the draws have the first document, half of these at the first place.
    assert abs(drawn[0] / 2000 - 0.978) < 0.02 and abs(first[0] / 2000 - 0.489) < 0.04
    with pytest.raises(ValueError, match="raise --documents"):
        draw(rng, [1.0], 2)


def test_requests_are_those_of_their_seed_and_of_no_other() -> None:
    corpus = NoiseCorpus(1000, 6, 20, 1)
    asked = permuted(corpus, 3, 1.0, 5, 1)
    assert asked == permuted(corpus, 3, 1.0, 5, 1) and asked != permuted(corpus, 3, 1.0, 5, 2)
    prompts = [prompt_of(corpus, dialogue, []) for dialogue in asked]
    assert len({prompt.digest for prompt in prompts}) == 5
    for prompt, dialogue in zip(prompts, asked, strict=True):
        parts = [prompt.ids[a:b] for a, b in zip(prompt.offsets[::2], prompt.offsets[1::2], strict=True)]
        assert parts == [corpus.documents[number] for number in dialogue[0].documents]
        assert len(prompt.ids) < prompt_tokens(parse("--document-tokens=20", "--per-request=3"), 1000)


def test_all_servers_have_the_same_bytes_and_two_of_them_a_tier() -> None:
    made = commands(GPU, parse("--kv-gib=4", "--stock-flags=--page-size=64", "--document-tokens=2048"))
    assert list(made) == ["redknot-tier", "redknot", "stock-tier", "stock"]
    for side, command in made.items():
        assert ("--hicache-ratio=3.0" in command) == side.endswith("-tier")
        if side.startswith("stock"):
            assert f"--max-total-tokens={2**32 // (36 * 8 * 128 * 2 * 2)}" in command and "--page-size=64" in command
        else:
            assert f"--redknot-kv-budget={2**32}" in command and "--redknot-segment-length=2048" in command


def test_stock_with_a_tier_needs_a_gpu() -> None:
    assert list(commands(CPU, parse())) == ["redknot-tier", "redknot", "stock"]
    with pytest.raises(CliError, match="needs a GPU"):
        commands(CPU, parse("--sides=stock-tier"))
    with pytest.raises(CliError, match="'stok' is not known"):
        commands(CPU, parse("--sides=stok"))


@pytest.mark.parametrize("words", [["--rate=0"], ["--requests=0"], ["--zipf=-1"], ["--host-ratio=0"]])
def test_numbers_that_cannot_be_are_refused(words: list[str]) -> None:
    with pytest.raises(CliError, match=words[0].split("=")[0]):
        parse(*words)


def test_the_corpus_is_twice_what_fits_into_the_pool_that_is_meant() -> None:
    def made(held: dict[str, int] | None, *words: str) -> int:
        return len(bench_tier_rag.make_corpus(held, CPU, parse(*words)).documents)

    assert made({"device": 7}) == 14 and made({"device": 7}, "--times=3") == 21
    assert made({"device": 7}, "--documents=9") == 9 and made(None, "--documents=9") == 9
    stock = 2**27 // (2 * 6 * 4 * 64 * 4) // 320
    assert made(None, "--fits=stock") == 2 * stock
    with pytest.raises(CliError, match="name one in --sides"):
        made(None)
    with pytest.raises(CliError, match="raise --kv-gib"):
        made({"device": 1}, "--per-request=3")


@pytest.fixture
def fakes() -> Iterator[dict[str, FakeNative]]:
    """A server of each kind that finds a part of every prompt, and of which stock found two tokens on the host."""
    with (
        fake_native(lambda body: Reply((5,), cached=4, on_host=2)) as stock,
        fake_native(lambda body: Reply((5,), report=segmented_report(body))) as redknot,
    ):
        yield {"stock": stock, "redknot": redknot}


def test_sides_get_the_same_requests_and_one_that_does_not_start_is_an_error(
    fakes: dict[str, FakeNative], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def running(*_: Any) -> Iterator[tuple[str, Server | ServerError]]:
        for side in ("redknot", "redknot-tier", "stock"):
            url = fakes[side.split("-")[0]].url
            server: Any = argparse.Namespace(url=url)
            yield side, ServerError("no memory") if side == "redknot-tier" else server

    status = {"copied_bytes": {"loaded_back": {"global": 2_000_000, "local": 1_000_000}}}
    monkeypatch.setattr(bench_tier_rag, "running", running)
    monkeypatch.setattr(bench_tier_rag, "redknot_status", lambda _: {"tiers": status})
    holds = {"device": 3, "host": 9, "device_bytes": 1, "host_bytes": 3}
    monkeypatch.setattr(bench_tier_rag, "held", lambda *_: dict(holds))
    words = ["--document-tokens=40", "--per-request=2", "--rate=200", "--requests=6", "--pause=0"]
    assert not bench_tier_rag.run(parse(*words, f"--json={tmp_path / 't.json'}"))
    asked = {side: [body["input_ids"] for body in fake.bodies] for side, fake in fakes.items()}
    # One wakes the server, six show the documents, two are not counted; those that arrive by chance overtake one another.
    assert asked["stock"][:9] == asked["redknot"][:9] and len(asked["stock"]) == 1 + 6 + 2 + 6
    assert sorted(asked["stock"]) == sorted(asked["redknot"])
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["corpus"] == {"documents": 6, "tokens": 240}
    assert found["sides"]["redknot-tier"] == {"error": "no memory"}
    stock, redknot = found["sides"]["stock"], found["sides"]["redknot"]
    assert (stock["n"], stock["errors"], stock["holds"]["device_share"]) == (6, 0, 0.5)
    tokens = 16 + 80 + 4 + 12
    assert stock["shares"]["computed"] == pytest.approx(1 - 4 / tokens)
    assert redknot["shares"]["computed"] == pytest.approx((tokens - 80 + 2) / tokens)
    printed = capsys.readouterr().out
    assert "6 documents of 40 tokens, 2 a request" in printed and "redknot-tier: no memory" in printed
    assert [record["from_host"] for record in stock["requests"]] == [2] * 6
    assert f"{100 * 2 / tokens:.1f} %" in printed and "same_answers" not in found


@pytest.mark.full
def test_a_tier_saves_computing_and_changes_no_answer(tmp_path: Path) -> None:
    """Both servers with RedKnot on the embedded model, one of them stopped while the other is asked."""
    file = tmp_path / "t.json"
    words = ["--sides=redknot-tier,redknot", "--together=2", "--threads=1", "--kv-gib=0.06", "--per-request=3"]
    assert bench_tier_rag.run(parse(*words, "--rate=1", "--requests=8", f"--json={file}"))
    found = json.loads(file.read_text())
    tier, without = found["sides"]["redknot-tier"], found["sides"]["redknot"]
    assert tier["holds"]["device"] == without["holds"]["device"] > 0
    assert abs(tier["holds"]["device_share"] - 0.5) < 0.03
    assert tier["holds"]["host_share"] > 1 and without["holds"]["host"] == 0
    assert tier["shares"]["computed"] < 0.2 < without["shares"]["computed"]
    assert tier["tiers"]["copied_tokens"]["loaded_back"]["global"] > 0
    assert found["same_answers"] == {"same": 8, "of": 8}
