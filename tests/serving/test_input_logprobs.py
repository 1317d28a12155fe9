# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a segmented prompt's own tokens, from its tail on: equal to their definition, whatever the cache holds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.serving import harness
from tests.serving.answers import TOLERANCE
from tests.serving.conversations import check_no_leak
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import noise
from tests.serving.segmented import SEGMENTS, SegmentedRequest, kept, make_choosing_requests, make_requests
from tests.serving.segmented_oracle import SegmentedOracle
from tests.serving.shared import SharedServers

pytestmark = pytest.mark.serving

HIT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a server of the shipped map with retrieval heads."""
    file = save_retrieval_map(tmp_path_factory.mktemp("map"))
    return ("--redknot", f"--redknot-head-map={file}", "--redknot-segment-length=300", "--redknot-uncertified")


def first_allowed(request: SegmentedRequest) -> int:
    """Where the text behind the last segment begins. The last token of a prompt is never part of a segment."""
    pairs = zip(request.offsets[::2], request.offsets[1::2], strict=True)
    last = len(request.prompt) - 1
    return max((min(end, last) for start, end in pairs if start < min(end, last)), default=0)


def starts_of(requests: Sequence[SegmentedRequest]) -> list[int]:
    """The first allowed position for some, a later one for others, the prompt's end for one in eight."""
    found = []
    for number, request in enumerate(requests):
        first, length = first_allowed(request), len(request.prompt)
        found.append(length if number % 8 == 7 else first if number % 2 else (first + length) // 2)
    return found


def logprobs_of(server: harness.Server, request: SegmentedRequest | list[int], start: int) -> list[float]:
    """Log-probabilities of the tokens behind the one at `start`, which has none itself."""
    return answered(server, request, start)[0]


def answered(
    server: harness.Server, request: SegmentedRequest | list[int], start: int
) -> tuple[list[float], dict[str, Any]]:
    """The same, and `meta_info`. Checks that they are of the client's own tokens. request: tokens alone ask for exact mode."""
    prompt, params = (request.prompt, request.params) if isinstance(request, SegmentedRequest) else (request, {})
    body = server.generate(
        prompt,
        2,
        sampling_params={"custom_params": params},
        return_logprob=True,
        logprob_start_len=start,
        top_logprobs_num=1,
    )
    meta: dict[str, Any] = body["meta_info"]
    rows = meta["input_token_logprobs"]
    assert [row[1] for row in rows] == prompt[start:]
    assert len(meta["output_token_logprobs"]) == 2 and len(meta["input_top_logprobs"]) == len(rows)
    if not rows:
        return [], meta
    assert rows[0][0] is None and meta["input_top_logprobs"][0] is None
    found = [float(row[0]) for row in rows[1:]]
    for mine, (best, *_) in zip(found, meta["input_top_logprobs"][1:], strict=True):
        assert mine <= best[0] + HIT_TOLERANCE
    return found, meta


def all_logprobs(
    server: harness.Server, requests: Sequence[SegmentedRequest], starts: Sequence[int], at_once: int
) -> list[list[float]]:
    """Of all requests, in order, with `at_once` in flight."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda request, start: logprobs_of(server, request, start), requests, starts))


def compare_ways(server: harness.Server, requests: Sequence[SegmentedRequest]) -> list[list[float]]:
    """Ask with an empty cache one by one, again with a full one, and in batches. Returns what came first; raises
    AssertionError where something else comes later.
    """
    starts, cold = starts_of(requests), []
    for request, start in zip(requests, starts, strict=True):
        server.flush()
        cold.append(logprobs_of(server, request, start))
    ways = {"warm": all_logprobs(server, requests, starts, 1), "in a batch": all_logprobs(server, requests, starts, 16)}
    server.flush()
    ways["cold in a batch"] = all_logprobs(server, requests, starts, 16)
    check_no_leak(server)
    for way, found in ways.items():
        for number, (mine, first) in enumerate(zip(found, cold, strict=True)):
            assert mine == pytest.approx(first, abs=HIT_TOLERANCE), f"{way}: request {number}"
    assert sum(map(len, cold)) > 8 * len(requests), "there is something to compare"
    return cold


# Chunks that most tails cross, and such that have all of a prompt; some tails of the first case lie within one of its chunks, too.
CHUNKS = [128, pytest.param(2048, marks=pytest.mark.full)]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_hit_never_changes_them_and_they_equal_the_definition(servers: SharedServers, chunk: int, full: bool) -> None:
    rng = random.Random(f"input {chunk}")
    requests = make_requests(rng, 80 if full else 5, most=6, longest=300, limit=1200)
    requests = [request for request in requests if first_allowed(request)]
    # Tails longer than a chunk, so that a chunk begins and ends within them.
    requests += [replace(request, prompt=request.prompt + noise(rng, 300)) for request in requests[:4]]
    found = compare_ways(servers.get(*SEGMENTS, f"--chunked-prefill-size={chunk}"), requests)
    oracle = SegmentedOracle(harness.MODEL, json.loads(harness.HEAD_MAP.read_text()))
    for request, start, mine in zip(requests, starts_of(requests), found, strict=True):
        if mine:
            # To the oracle the rest of the tail is an answer.
            head, rest = request.prompt[: start + 1], request.prompt[start + 1 :]
            rows = oracle.segmented(head, rest, request.offsets, request.policy, False)
            defined = [float(row[token]) for row, token in zip(rows, rest, strict=True)]
            assert mine == pytest.approx(defined, abs=TOLERANCE), f"{request.policy} {request.offsets}"


@pytest.mark.parametrize("chunk", CHUNKS)
def test_under_question_they_are_those_of_what_is_left(
    servers: SharedServers, choosing: tuple[str, ...], chunk: int, full: bool
) -> None:
    """The client counts positions in the prompt that it sent; values are those of exact mode on what is left of it."""
    rng = random.Random(f"question input {chunk}")
    requests = make_choosing_requests(rng, 60 if full else 4, longest=300, limit=1500)
    requests = [replace(request, prompt=request.prompt + noise(rng, 150)) for request in requests]
    server = servers.get(*choosing, f"--chunked-prefill-size={chunk}")
    found = compare_ways(server, requests)
    for request, start, mine in zip(requests, starts_of(requests), found, strict=True):
        again, meta = answered(server, request, start)
        rest = kept(request, meta["redknot"])
        exact = logprobs_of(server, rest, start - len(request.prompt) + len(rest))
        assert mine == pytest.approx(exact, abs=HIT_TOLERANCE) and again == pytest.approx(exact, abs=HIT_TOLERANCE)
        assert meta["prompt_tokens"] == len(request.prompt)


def test_where_all_rows_are_computed_they_equal_those_of_stock(servers: SharedServers, full: bool) -> None:
    """Every head global, every row of every segment repaired: segmented mode is then what stock computes."""
    rng = random.Random("stock input")
    requests = make_requests(rng, 40 if full else 6, most=5, longest=300, limit=1200)
    requests = [replace(request, policy="boundary:300") for request in requests if first_allowed(request)]
    starts = starts_of(requests)
    stock = servers.get("--chunked-prefill-size=128")
    wanted = [logprobs_of(stock, request.prompt, start) for request, start in zip(requests, starts, strict=True)]
    server = servers.get("--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}", "--chunked-prefill-size=128")
    for way, at_once in (("cold", 8), ("warm", 1)):
        for mine, theirs in zip(all_logprobs(server, requests, starts, at_once), wanted, strict=True):
            assert mine == pytest.approx(theirs, abs=TOLERANCE), way
    check_no_leak(server)


def test_positions_before_the_tail_are_refused_with_the_first_that_is_allowed(
    servers: SharedServers, choosing: tuple[str, ...]
) -> None:
    server = servers.get(*choosing, "--chunked-prefill-size=128")
    prompt = noise(random.Random("refused"), 100)

    def ask(offsets: list[int], policy: str, start: int, **fields: Any) -> Any:
        params = {"redknot_segments": offsets, "redknot_repair": policy}
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 2, "custom_params": params}}
        return server.post("/generate", {**body, "return_logprob": True, "logprob_start_len": start, **fields})

    for policy in ("none", "boundary:16", "question:1"):
        for offsets, first in (([10, 50, 50, 80], 80), ([0, 50, 90, 90], 50), ([0, 20, 30, 100], 99)):
            refused = ask(offsets, policy, first - 1)
            assert refused.status_code == 400, refused.text
            assert f"the first position that is allowed is {first}," in refused.json()["error"]["message"]
            assert ask(offsets, policy, first).status_code == 200
    assert ask([10, 50], "none", 0, return_logprob=False).status_code == 200, "then SGLang does not look at it"
    assert ask([10, 10], "none", 0).status_code == 200, "no segment, exact mode"
    assert ask([10, 50], "none", 101).status_code == 400, "behind the prompt"
    echo = {"model": "m", "prompt": prompt, "max_tokens": 2, "logprobs": 1, "echo": True}
    params = {"redknot_segments": [10, 50]}
    answer = server.post("/v1/completions", {**echo, "custom_params": params})
    assert answer.status_code == 400 and "is allowed is 50," in answer.text
    check_no_leak(server)
