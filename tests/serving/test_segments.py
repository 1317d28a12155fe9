# SPDX-License-Identifier: Apache-2.0
"""Segmented mode in real servers: equal to its definition, and the same answer whatever the cache holds."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests as http

from tests.serving import harness
from tests.serving.answers import TOLERANCE, Answer, agree
from tests.serving.conversations import check_no_leak
from tests.serving.prompts import noise
from tests.serving.segmented import (
    SegmentedRequest,
    ask_all_segmented,
    ask_segmented,
    make_documents,
    make_request,
)
from tests.serving.segmented_oracle import SegmentedOracle

pytestmark = pytest.mark.serving

ARGUMENTS = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-segment-length=300"]
POLICIES = ("none", "boundary:16", "blend:0.05", "blend:0.15")
ANSWER = 6
HIT_TOLERANCE = 1e-4
POOL = 24576


def make_requests(rng: random.Random, count: int, most: int, longest: int, limit: int) -> list[SegmentedRequest]:
    documents = make_documents(rng, 8, longest)
    return [make_request(rng, documents, rng.choice(POLICIES), most, limit) for _ in range(count)]


@pytest.mark.parametrize("lead", ["none", "lead"])
def test_equals_the_definition(lead: str) -> None:
    requests = make_requests(random.Random(f"oracle {lead}"), 16, most=5, longest=300, limit=900)
    oracle = SegmentedOracle(harness.MODEL, json.loads(harness.HEAD_MAP.read_text()))
    with harness.launch([*ARGUMENTS, "--chunked-prefill-size=128", f"--redknot-segment-lead={lead}"]) as server:
        cold = ask_all_segmented(server, requests, ANSWER, at_once=4)
        warm = ask_all_segmented(server, requests, ANSWER, at_once=1)
        check_no_leak(server)
    for request, *answers in zip(requests, cold, warm, strict=True):
        for answer, report in answers:
            logprobs = oracle.segmented(request.prompt, answer.tokens, request.offsets, request.policy, lead == "lead")
            for row, token, logprob in zip(logprobs, answer.tokens, answer.logprobs, strict=True):
                assert float(row.max() - row[token]) <= TOLERANCE, f"{request.policy} {request.offsets} {report}"
                assert abs(float(row[token]) - logprob) <= TOLERANCE, f"{request.policy} {request.offsets} {report}"


@pytest.mark.parametrize("chunk", [128, 2048])
def test_a_hit_never_changes_an_answer(chunk: int, full: bool) -> None:
    count = 300 if full else 20
    rng = random.Random(f"hits {chunk}")
    requests = make_requests(rng, count, most=12, longest=1500, limit=7000 if full else 3500)
    worst = 0.0
    with harness.launch([*ARGUMENTS, f"--chunked-prefill-size={chunk}"]) as server:
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
        if index % 5 == 0:
            for _ in range(4):
                server.generate(noise(rng, POOL // 8), 1)
        answers.append(ask_segmented(server, request, ANSWER)[0])
    return answers


def test_pools_that_hold_little_more_than_one_request() -> None:
    """Requests wait, evict each other's segments and are retracted, but all are answered, and right."""
    rng = random.Random("small")
    requests = make_requests(rng, 16, most=5, longest=300, limit=1000)
    with harness.launch([*ARGUMENTS, "--chunked-prefill-size=128"]) as roomy:
        reference = [answer for answer, _ in ask_all_segmented(roomy, requests, 40, at_once=4)]
    with harness.launch([*ARGUMENTS, "--chunked-prefill-size=128", "--max-total-tokens=3600"]) as server:
        answers = [answer for answer, _ in ask_all_segmented(server, requests, 40, at_once=16)]
        check_no_leak(server)
    for answer, expected in zip(answers, reference, strict=True):
        agree(answer, expected, TOLERANCE)


def test_whoever_waits_for_segments_lets_those_that_run_go_on() -> None:
    """Small requests fill the pool; segments of large ones, which do not fit beside them, must not go before every step."""
    rng = random.Random("waits")
    documents = [noise(rng, rng.choice((16, 30, 70, 370, 370))) for _ in range(40)]

    def large() -> SegmentedRequest:
        prompt, offsets = noise(rng, 4), list[int]()
        for document in rng.sample(documents, 8):
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document + noise(rng, 5) * (rng.random() < 0.3)
        return SegmentedRequest(prompt + noise(rng, 8), offsets, "blend:0.05")

    with harness.launch([*ARGUMENTS, "--chunked-prefill-size=128", "--max-total-tokens=7000"]) as server:
        for _ in range(6):
            with ThreadPoolExecutor(12) as pool:
                running = [pool.submit(server.generate, noise(rng, 500), 60) for _ in range(12)]
                time.sleep(0.3)
                ask_all_segmented(server, [large() for _ in range(4)], 4, at_once=4)
                assert all(len(future.result()["output_ids"]) == 60 for future in running)
        check_no_leak(server)


def test_documents_that_running_requests_share_stay_however_many_wait() -> None:
    """The pool holds the documents and three requests of sixteen: the others wait, and nothing is computed again."""
    rng = random.Random("load")
    documents = [noise(rng, 240) for _ in range(10)]

    def request(number: int) -> SegmentedRequest:
        prompt, offsets = noise(rng, 4), list[int]()
        for document in rng.sample(documents, 8):
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document
        return SegmentedRequest(prompt + noise(rng, 12), offsets, "boundary:16")

    shown = [SegmentedRequest(document + [5], [0, 240], "boundary:16") for document in documents]
    others = list(map(request, range(24)))
    with harness.launch([*ARGUMENTS, "--chunked-prefill-size=2048", "--max-total-tokens=15500"]) as server:
        ask_all_segmented(server, shown, 1, at_once=1)
        reports = [report for _, report in ask_all_segmented(server, others, 60, at_once=24)]
        check_no_leak(server)
    own = 4 + 8 * 16 + 12
    assert max(report["computed_tokens"] for report in reports) <= own


def test_text_that_running_requests_share_stays_however_many_wait() -> None:
    """`blend` needs text between documents to choose rows; nobody relocates it, and it must stay like documents."""
    rng = random.Random("text")
    between, documents = noise(rng, 100), [noise(rng, 240) for _ in range(8)]

    def request() -> SegmentedRequest:
        # No prompt begins as another does, which would let it reuse more than segments.
        prompt, offsets = noise(rng, 1), list[int]()
        for number, document in enumerate(rng.sample(documents, 8)):
            prompt = prompt + between * (number == 4)
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document
        return SegmentedRequest(prompt + noise(rng, 12), offsets, "blend:0.05")

    flags = ["--chunked-prefill-size=2048", "--max-total-tokens=15500", "--enable-metrics"]
    flags.append("--redknot-segment-tokens=2100")
    with harness.launch([*ARGUMENTS, *flags]) as server:
        ask_segmented(server, request(), 1)
        before = isolated_rows(server)
        ask_all_segmented(server, [request() for _ in range(24)], 60, at_once=24)
        check_no_leak(server)
        again = isolated_rows(server) - before
    # The first token of each prompt is its own.
    assert 24 <= again < len(between)


def isolated_rows(server: harness.Server) -> float:
    """Rows that isolated prefills have computed."""
    text = http.get(server.url + "/metrics", timeout=60).text
    lines = re.findall(r'^redknot:segment_rows_total\{.*kind="isolated".*\} (.*)$', text, re.MULTILINE)
    return sum(map(float, lines))


@pytest.mark.parametrize(
    ("chunk", "policy", "repaired"), [(128, "boundary:16", (16, 16)), (512, "blend:0.05", (1, 15))]
)
def test_tenants_do_not_share_segments(chunk: int, policy: str, repaired: tuple[int, int]) -> None:
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

    with harness.launch([*ARGUMENTS, f"--chunked-prefill-size={chunk}"]) as server:
        assert computed(request) == len(request.prompt)
        for tenant in ("a", "b"):
            assert computed(request, extra_key=tenant) == len(request.prompt)
            assert again[0] <= computed(moved, extra_key=tenant) <= again[1]
        assert again[0] <= computed(moved) <= again[1]
        check_no_leak(server)
