# SPDX-License-Identifier: Apache-2.0
"""Segmented mode where not all fits: pools of a few requests, and more clients than they hold."""

from __future__ import annotations

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests as http

from tests.serving import harness
from tests.serving.answers import TOLERANCE, agree
from tests.serving.conversations import check_no_leak
from tests.serving.prompts import noise
from tests.serving.segmented import SEGMENTS, SegmentedRequest, ask_all_segmented, ask_segmented, make_requests
from tests.serving.shared import SharedServers

pytestmark = pytest.mark.serving

# The documents of ten or eight requests, and three such requests.
ROOM = (*SEGMENTS, "--chunked-prefill-size=2048", "--max-total-tokens=15500")


def test_pools_that_hold_little_more_than_one_request(servers: SharedServers, full: bool) -> None:
    """Requests wait, evict each other's segments and are retracted, but all are answered, and right."""
    requests = make_requests(random.Random("small"), 48 if full else 8, most=5, longest=300, limit=1000)
    reference = [answer for answer, _ in ask_all_segmented(servers.get(*ROOM), requests, 40, at_once=4)]
    with harness.launch([*SEGMENTS, "--chunked-prefill-size=128", "--max-total-tokens=3600"]) as server:
        answers = [answer for answer, _ in ask_all_segmented(server, requests, 40, at_once=16)]
        check_no_leak(server)
    for answer, expected in zip(answers, reference, strict=True):
        agree(answer, expected, TOLERANCE)


def test_whoever_waits_for_segments_lets_those_that_run_go_on(full: bool) -> None:
    """Small requests fill the pool; segments of large ones, which do not fit beside them, must not go before every step."""
    rng = random.Random("waits")
    documents = [noise(rng, rng.choice((16, 30, 70, 370, 370))) for _ in range(40)]

    def large() -> SegmentedRequest:
        prompt, offsets = noise(rng, 4), list[int]()
        for document in rng.sample(documents, 8):
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document + noise(rng, 5) * (rng.random() < 0.3)
        return SegmentedRequest(prompt + noise(rng, 8), offsets, "blend:0.05")

    with harness.launch([*SEGMENTS, "--chunked-prefill-size=128", "--max-total-tokens=7000"]) as server:
        for _ in range(12 if full else 2):
            with ThreadPoolExecutor(12) as pool:
                running = [pool.submit(server.generate, noise(rng, 500), 60) for _ in range(12)]
                time.sleep(0.3)
                ask_all_segmented(server, [large() for _ in range(4)], 4, at_once=4)
                assert all(len(future.result()["output_ids"]) == 60 for future in running)
        check_no_leak(server)


def test_documents_that_running_requests_share_stay_however_many_wait(servers: SharedServers, full: bool) -> None:
    """The pool holds the documents and three requests of sixteen: the others wait, and nothing is computed again."""
    rng = random.Random("load")
    documents = [noise(rng, 240) for _ in range(10)]

    def request() -> SegmentedRequest:
        prompt, offsets = noise(rng, 4), list[int]()
        for document in rng.sample(documents, 8):
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document
        return SegmentedRequest(prompt + noise(rng, 12), offsets, "boundary:16")

    shown = [SegmentedRequest(document + [5], [0, 240], "boundary:16") for document in documents]
    count, length = _crowd(full)
    others = [request() for _ in range(count)]
    server = servers.get(*ROOM)
    ask_all_segmented(server, shown, 1, at_once=1)
    reports = [report for _, report in ask_all_segmented(server, others, length, at_once=count)]
    check_no_leak(server)
    own = 4 + 8 * 16 + 12
    assert max(report["computed_tokens"] for report in reports) <= own


def test_text_that_running_requests_share_stays_however_many_wait(full: bool) -> None:
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

    count, length = _crowd(full)
    with harness.launch([*ROOM, "--enable-metrics", "--redknot-segment-tokens=2100"]) as server:
        ask_segmented(server, request(), 1)
        before = isolated_rows(server)
        ask_all_segmented(server, [request() for _ in range(count)], length, at_once=count)
        check_no_leak(server)
        again = isolated_rows(server) - before
    # The first token of each prompt is its own.
    assert count <= again < len(between)


def _crowd(full: bool) -> tuple[int, int]:
    """Requests at once, several times as many as the pool holds, and the length of their answers."""
    return (24, 60) if full else (12, 20)


def isolated_rows(server: harness.Server) -> float:
    """Rows that isolated prefills have computed."""
    text = http.get(server.url + "/metrics", timeout=60).text
    lines = re.findall(r'^redknot:segment_rows_total\{.*kind="isolated".*\} (.*)$', text, re.MULTILINE)
    return sum(map(float, lines))
