# SPDX-License-Identifier: Apache-2.0
"""Segmented mode in real servers: equal to its definition, and the same answer whatever the cache holds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from torch import Tensor

from tests.serving import harness
from tests.serving.answers import TOLERANCE, Answer, agree
from tests.serving.conversations import check_no_leak
from tests.serving.prompts import noise
from tests.serving.segmented import (
    SEGMENTS,
    SegmentedRequest,
    ask_all_segmented,
    ask_segmented,
    make_requests,
)
from tests.serving.segmented_oracle import SegmentedOracle
from tests.serving.shared import SharedServers

pytestmark = pytest.mark.serving

ANSWER = 6
# Longest document and longest prompt by chunk size: several chunks, and one that has all of a prompt.
SIZES = {128: (300, 1300), 2048: (300, 1300)}
HIT_TOLERANCE = 1e-4
POOL = 24576


@pytest.mark.parametrize("lead", ["none", "lead"])
def test_equals_the_definition(servers: SharedServers, lead: str, full: bool) -> None:
    requests = make_requests(random.Random(f"oracle {lead}"), 48 if full else 8, most=5, longest=300, limit=900)
    oracle = SegmentedOracle(harness.MODEL, json.loads(harness.HEAD_MAP.read_text()))
    # Without the flag there is no lead.
    leads = ["--redknot-segment-lead=lead"] if lead == "lead" else []
    server = servers.get(*SEGMENTS, "--chunked-prefill-size=128", *leads)
    cold = ask_all_segmented(server, requests, ANSWER, at_once=4)
    warm = ask_all_segmented(server, requests, ANSWER, at_once=1)
    check_no_leak(server)
    for request, *answers in zip(requests, cold, warm, strict=True):
        defined: dict[tuple[int, ...], Tensor] = {}
        for answer, report in answers:
            tokens = tuple(answer.tokens)
            if tokens not in defined:
                defined[tokens] = oracle.segmented(
                    request.prompt, answer.tokens, request.offsets, request.policy, lead == "lead"
                )
            for row, token, logprob in zip(defined[tokens], answer.tokens, answer.logprobs, strict=True):
                assert float(row.max() - row[token]) <= TOLERANCE, f"{request.policy} {request.offsets} {report}"
                assert abs(float(row[token]) - logprob) <= TOLERANCE, f"{request.policy} {request.offsets} {report}"


@pytest.mark.parametrize("chunk", [128, 2048])
def test_a_hit_never_changes_an_answer(servers: SharedServers, chunk: int, full: bool) -> None:
    count = 300 if full else 8
    rng = random.Random(f"hits {chunk}")
    longest, limit = (1500, 7000) if full else SIZES[chunk]
    requests = make_requests(rng, count, 12, longest, limit)
    worst = 0.0
    server = servers.get(*SEGMENTS, f"--chunked-prefill-size={chunk}")
    cold = []
    for request in requests:
        server.flush()
        cold.append(ask_segmented(server, request, ANSWER)[0])
    ways = {
        "warm": [answer for answer, _ in ask_all_segmented(server, requests, ANSWER, at_once=1)],
        "half evicted": _after_evictions(server, rng, requests),
        "in a batch": [answer for answer, _ in ask_all_segmented(server, requests, ANSWER, at_once=16)],
    }
    check_no_leak(server)
    ways["cold in a batch"] = [answer for answer, _ in ask_all_segmented(server, requests, ANSWER, at_once=16)]
    check_no_leak(server)
    assert sum(answer.cached for answer in ways["warm"]) > sum(answer.cached for answer in cold)
    for way, answers in ways.items():
        for answer, reference in zip(answers, cold, strict=True):
            try:
                worst = max(worst, agree(answer, reference, HIT_TOLERANCE).worst)
            except AssertionError as error:
                raise AssertionError(f"{way}: {error}") from None
    print(f"{count} requests, largest logprob difference {worst:.1e}")


def _after_evictions(server: harness.Server, rng: random.Random, requests: Sequence[SegmentedRequest]) -> list[Answer]:
    """Answers while half of the tree is pushed out again and again."""
    answers = []
    for index, request in enumerate(requests):
        if index % 5 == 4:
            for _ in range(4):
                server.generate(noise(rng, POOL // 8), 1)
        answers.append(ask_segmented(server, request, ANSWER)[0])
    return answers


@pytest.mark.parametrize(
    ("chunk", "policy", "repaired"), [(128, "boundary:16", (16, 16)), (2048, "blend:0.05", (1, 15))]
)
def test_tenants_do_not_share_segments(
    servers: SharedServers, chunk: int, policy: str, repaired: tuple[int, int]
) -> None:
    """Another extra_key computes everything itself, in one chunk or in several; its own second request does not."""
    rng = random.Random("tenants")
    document, tail = noise(rng, 300), noise(rng, 200)
    request = SegmentedRequest(noise(rng, 10) + document + tail, [10, 310], policy)
    moved = SegmentedRequest(noise(rng, 50) + document + tail, [50, 350], policy)

    again = [len(moved.prompt) - 300 + rows for rows in repaired]

    def computed(request: SegmentedRequest, **body: str) -> int:
        answer = server.generate(request.prompt, 2, sampling_params={"custom_params": request.params}, **body)
        report = answer["meta_info"]["redknot"]
        assert report["computed_tokens"] + report["reused_tokens"] == len(request.prompt)
        assert report["computed_tokens"] == len(request.prompt) - answer["meta_info"]["cached_tokens"]
        return int(report["computed_tokens"])

    server = servers.get(*SEGMENTS, f"--chunked-prefill-size={chunk}")
    assert computed(request) == len(request.prompt)
    for tenant in ("a", "b"):
        assert computed(request, extra_key=tenant) == len(request.prompt)
        assert again[0] <= computed(moved, extra_key=tenant) <= again[1]
    assert again[0] <= computed(moved) <= again[1]
    check_no_leak(server)
