# SPDX-License-Identifier: Apache-2.0
"""The repair policy `question` in real servers: its choice and its answers are those of its definition, whatever is cached."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redknot_sglang.heads import load_head_map
from redknot_sglang.plan.arithmetic import Arithmetic
from tests.serving import harness
from tests.serving.answers import Answer, agree
from tests.serving.answers import ask as ask_alone
from tests.serving.conversations import check_no_leak
from tests.serving.definition import Definition
from tests.serving.harness import MODEL
from tests.serving.layer_rows import flag, taken
from tests.serving.maps import RETRIEVAL, save_retrieval_map
from tests.serving.prompts import noise
from tests.serving.segmented import (
    SegmentedRequest,
    ask_all_segmented,
    ask_segmented,
    kept,
    make_choosing_requests,
)
from tests.serving.shared import SharedServers

pytestmark = pytest.mark.serving

ANSWER = 6
# Longest document and longest prompt by chunk size: several chunks, and one that has all of a prompt.
SIZES = {128: (300, 1300), 2048: (300, 1300)}
HIT_TOLERANCE = 1e-4
POOL = 24576


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a server of the shipped map with retrieval heads."""
    file = save_retrieval_map(tmp_path_factory.mktemp("map"))
    return ("--redknot", f"--redknot-head-map={file}", "--redknot-segment-length=300", "--redknot-uncertified")


def test_equals_the_definition(servers: SharedServers, flags: tuple[str, ...], full: bool) -> None:
    """The chosen are those that float32 passes of their own choose, and the answer is that of exact mode to what is left."""
    definition = Definition(RETRIEVAL)
    requests = make_choosing_requests(random.Random("definition"), 60 if full else 12, longest=300, limit=1500)
    server = servers.get(*flags, "--chunked-prefill-size=128")
    decided = 0
    for request, (answer, report) in zip(requests, ask_all_segmented(server, requests, ANSWER, at_once=4), strict=True):
        wanted, lead = definition.chosen(request)
        if lead > 1e-4:
            assert set(report["chosen_segments"]) == wanted, f"{request.policy}: {report}"
            decided += 1
        rest = kept(request, report)
        agree(replace(answer, prompt=rest), ask_alone(server, rest, ANSWER), HIT_TOLERANCE)
        assert report["mode"] == "segmented" and report["policy"] == request.policy
        assert report["prompt_tokens"] == len(request.prompt) and report["segments"] == len(request.offsets) // 2
        assert report["computed_tokens"] + report["reused_tokens"] == len(rest)
        assert report["dense_flops"] > 0 and report["flops"] > 0
    assert decided > len(requests) // 2
    check_no_leak(server)


@pytest.mark.parametrize("chunk", [128, 2048])
def test_a_hit_never_changes_an_answer(servers: SharedServers, flags: tuple[str, ...], chunk: int, full: bool) -> None:
    rng = random.Random(f"question {chunk}")
    longest, limit = (1500, 7000) if full else SIZES[chunk]
    requests = make_choosing_requests(rng, 200 if full else 8, longest, limit)
    server = servers.get(*flags, f"--chunked-prefill-size={chunk}")
    cold = []
    for request in requests:
        server.flush()
        cold.append(ask_segmented(server, request, ANSWER))
    ways = {
        "warming": ask_all_segmented(server, requests, ANSWER, at_once=1),
        "warm": ask_all_segmented(server, requests, ANSWER, at_once=1),
        "half evicted": [
            evicted(server, rng, request) if full or number % 8 == 4 else ask_segmented(server, request, ANSWER)
            for number, request in enumerate(requests)
        ],
        "in a batch": ask_all_segmented(server, requests, ANSWER, at_once=16),
    }
    check_no_leak(server)
    server.flush()
    ways["cold in a batch"] = ask_all_segmented(server, requests, ANSWER, at_once=16)
    check_no_leak(server)
    assert sum(report["cached_tokens"] for _, report in ways["warm"]) > 0
    assert all(report["cached_tokens"] == 0 for _, report in cold)
    for way, answers in ways.items():
        for (answer, report), (reference, first) in zip(answers, cold, strict=True):
            assert report["chosen_segments"] == first["chosen_segments"], way
            agree(answer, reference, HIT_TOLERANCE)


def evicted(server: harness.Server, rng: random.Random, request: SegmentedRequest) -> tuple[Answer, dict[str, Any]]:
    """The answer after about half of the tree has been pushed out."""
    for _ in range(4):
        server.generate(noise(rng, POOL // 8), 1)
    return ask_segmented(server, request, ANSWER)


def test_a_chosen_document_behind_the_lead_is_not_computed_again(
    servers: SharedServers, flags: tuple[str, ...]
) -> None:
    """The first document that is left stands where it was computed alone, so it is a prefix hit; the client's count stays."""
    rng = random.Random("first")
    lead, documents, tail = noise(rng, 20), [noise(rng, 300) for _ in range(4)], noise(rng, 30)
    server = servers.get(*flags, "--chunked-prefill-size=2048")

    def answer(order: list[int]) -> dict[str, Any]:
        prompt, offsets = list(lead), []
        for i in order:
            offsets += [len(prompt), len(prompt) + 300]
            prompt += documents[i]
        params = {"redknot_segments": offsets, "redknot_repair": "question:1"}
        body = server.generate(prompt + tail, 2, sampling_params={"custom_params": params})
        meta: dict[str, Any] = body["meta_info"]
        assert meta["prompt_tokens"] == len(prompt) + 30 == meta["redknot"]["prompt_tokens"]
        assert meta["cached_tokens"] == meta["redknot"]["cached_tokens"]
        return dict(meta["redknot"]) | {"document": order[meta["redknot"]["chosen_segments"][0]]}

    cold = answer([0, 1, 2, 3])
    assert cold["cached_tokens"] == 0 and cold["computed_tokens"] <= 30
    again = answer([2, 3, 1, 0])
    # No document sees another, so their order plays no part in the choice.
    assert again["document"] == cold["document"]
    assert again["cached_tokens"] >= 320 and again["computed_tokens"] <= 30
    assert again["flops"] < again["dense_flops"] / 5
    check_no_leak(server)


def test_a_question_goes_no_deeper_than_the_deepest_retrieval_head(servers: SharedServers, tmp_path: Path) -> None:
    """Layers behind it compute nothing of a question that asks alone, and reports count the layers that its rows went through."""
    rng, retrieval, rows = random.Random("deep"), ((1, 2), (2, 0)), 30
    file, head_map = tmp_path / "rows", save_retrieval_map(tmp_path, retrieval)
    file.touch()
    lead, documents = noise(rng, 20), [noise(rng, 60 + 10 * number) for number in range(4)]
    options = ("--redknot-segment-length=300", "--redknot-uncertified", "--chunked-prefill-size=2048", flag(file))
    server = servers.get("--redknot", f"--redknot-head-map={head_map}", *options)
    config = SimpleNamespace(**json.loads((MODEL / "config.json").read_text()))
    full, early = (Arithmetic.of(config, load_head_map(head_map), config.head_dim, 0, layers=n) for n in (None, 3))
    held = sum(map(len, documents))
    logits = rows * held * len(retrieval) * full.pair // 2

    def ask(question: list[int]) -> tuple[dict[int, int], dict[str, Any], int]:
        """Rows by layer, the report, and operations of the question's own pass."""
        prompt, offsets = list(lead), list[int]()
        for document in documents:
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document
        taken(file)
        _, report = ask_segmented(server, SegmentedRequest(prompt + question, offsets, "question:1"), 1)
        end = len(lead) + len(documents[report["chosen_segments"][0]]) + rows
        own = full.computed(np.arange(end - report["computed_rows"], end))
        return taken(file), report, report["flops"] - own - logits

    def forwards() -> int:
        return int(server.get("/redknot/status")["prefill_forwards"]["choosing"])

    places, first = np.arange(len(lead), len(lead) + rows), noise(rng, rows)
    before = forwards()
    counted, report, passed = ask(first)
    # Nothing is cached, so that one forward computes every document and the question, each with a lead of its own.
    assert counted == dict.fromkeys(range(6), 5 * len(lead) + held + rows + report["computed_rows"])
    assert (passed, forwards()) == (full.computed(places), before)
    counted, report, passed = ask(noise(rng, rows))
    assert report["cached_tokens"] > 0 and report["computed_rows"] > 0
    assert counted == {layer: rows * (layer < 3) + report["computed_rows"] for layer in range(6)}
    assert (passed, forwards()) == (early.computed(places), before + 1)
    # What such a forward has left is for such forwards alone.
    alone = lead + first
    cached = server.generate(alone, 1)["meta_info"]["cached_tokens"]
    assert cached <= len(lead)
    server.flush()
    for _ in range(2):
        ask(first)
    kept_out = ask_alone(server, alone, ANSWER)
    server.flush()
    agree(kept_out, ask_alone(server, alone, ANSWER), HIT_TOLERANCE)
    check_no_leak(server)


def test_preloaded_documents_are_hits_and_clients_count_what_they_sent(
    servers: SharedServers, flags: tuple[str, ...]
) -> None:
    """Documents are preloaded behind their lead, which the policy needs; OpenAI's usage has the whole prompt."""
    rng = random.Random("preload")
    lead, documents, tail = noise(rng, 20), [noise(rng, 300) for _ in range(3)], noise(rng, 30)
    server = servers.get(*flags, "--chunked-prefill-size=2048")
    body = {"segments": documents, "repair": "question:1"}
    refused = server.post("/redknot/segments", body)
    assert refused.status_code == 400 and "lead is missing" in refused.text
    made = server.post("/redknot/segments", {**body, "lead": lead})
    made.raise_for_status()
    assert all(entry["new"] for entry in made.json())
    prompt = [*lead, *documents[0], *documents[1], *documents[2], *tail]
    params = {"redknot_segments": [20, 320, 320, 620, 620, 920], "redknot_repair": "question:1"}
    answer = server.post(
        "/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0, "custom_params": params}
    )
    answer.raise_for_status()
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] == len(prompt) and usage["prompt_tokens_details"]["cached_tokens"] == 320
    check_no_leak(server)


def test_no_more_documents_than_are_kept_are_exact(servers: SharedServers, flags: tuple[str, ...]) -> None:
    rng = random.Random("few")
    prompt, offsets = noise(rng, 400), [20, 150, 150, 300]
    server = servers.get(*flags, "--chunked-prefill-size=128")
    answer, report = ask_segmented(server, SegmentedRequest(prompt, offsets, "question:2"), ANSWER)
    agree(answer, ask_alone(server, prompt, ANSWER), HIT_TOLERANCE)
    assert report["chosen_segments"] == [0, 1] and report["segments"] == 2


def test_a_map_without_retrieval_heads_is_an_error_that_says_so(servers: SharedServers) -> None:
    server = servers.get("--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-segment-length=300")
    params = {"redknot_segments": [0, 10, 10, 20], "redknot_repair": "question:1"}
    answer = server.post("/generate", {"input_ids": list(range(30)), "sampling_params": {"custom_params": params}})
    assert answer.status_code == 400
    assert "retrieval heads" in answer.text and "redknot profile" in answer.text
