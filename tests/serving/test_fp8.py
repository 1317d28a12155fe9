# SPDX-License-Identifier: Apache-2.0
"""KV of 8-bit floats in real servers: what stock SGLang answers with them, and the same answer whatever the cache holds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import pytest

from tests.serving import harness
from tests.serving.answers import Answer, agree, ask
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import mixed, noise
from tests.serving.segmented import (
    SegmentedRequest,
    ask_all_segmented,
    ask_segmented,
    make_choosing_requests,
    make_requests,
)
from tests.serving.shared import SharedServers
from tests.serving.test_stock_parity import check, compare

pytestmark = pytest.mark.serving

KV = "--kv-cache-dtype=fp8_e4m3"
ANSWER = 6
# Sums in another order differ by 1e-7, which makes another 8-bit float of a few keys and values in a million: a step of 6 %.
HIT_TOLERANCE = 5e-3
# Numbers below 1/64 have fewer bits, and which those are depends on the scale.
SCALED_TOLERANCE = 5e-2
POOL = 24576
T = TypeVar("T")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Flags of a server of the shipped map with retrieval heads."""
    file = save_retrieval_map(tmp_path_factory.mktemp("map"))
    return ("--redknot", f"--redknot-head-map={file}", "--redknot-segment-length=300", KV)


def test_all_global_map_equals_stock(servers: SharedServers, full: bool) -> None:
    """SGLang serves such KV on a CPU, too, so that answers are compared token by token."""
    count = 100 if full else 8
    redknot = servers.get("--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}", KV)
    # Both round sums of another order to 8 bits, as `HIT_TOLERANCE` says.
    check(compare(servers.get(KV), redknot, count, HIT_TOLERANCE), count)


def test_a_prefix_hit_never_changes_an_answer(servers: SharedServers, flags: tuple[str, ...], full: bool) -> None:
    server, rng = servers.get(*flags), random.Random("prefixes")
    begin = mixed(rng, 1500)
    prompts = [
        begin[: rng.randrange(200, 1500)] + noise(rng, rng.choice((1, 40, 300))) for _ in range(60 if full else 8)
    ]
    cold = [_cold(server, partial(ask, server, prompt, ANSWER)) for prompt in prompts]
    server.flush()
    warm = [ask(server, prompt, ANSWER) for prompt in prompts]
    again = [ask(server, prompt, ANSWER) for prompt in prompts]
    assert sum(answer.cached for answer in warm) > 0 and all(answer.cached > 0 for answer in again)
    print(f"largest logprob difference {max(_worst(warm, cold), _worst(again, cold)):.1e}")
    check_no_leak(server)


def test_scales_of_a_file_are_divided_by_and_multiplied_with(
    servers: SharedServers, flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Scales are powers of two, so that the same bits are stored but for the smallest numbers: answers stay what they were."""
    config = json.loads((harness.MODEL / "config.json").read_text())
    scales = {str(layer): (0.25, 2.0)[layer % 2] for layer in range(config["num_hidden_layers"])}
    kv_cache = {"dtype": "float8_e4m3fn", "scaling_factor": {"0": scales}}
    file = tmp_path_factory.mktemp("scales") / "scales.json"
    file.write_text(json.dumps({"model_type": config["model_type"], "kv_cache": kv_cache}))
    prompts = [mixed(random.Random("scales"), length) for length in (30, 400, 900)]
    plain = [ask(servers.get(*flags), prompt, ANSWER) for prompt in prompts]
    scaled = servers.get(*flags, f"--quantization-param-path={file}")
    for _ in ("cold", "warm"):
        for prompt, reference in zip(prompts, plain, strict=True):
            agree(ask(scaled, prompt, ANSWER), reference, SCALED_TOLERANCE)
    assert f"Loaded KV cache scaling factors from {file}" in scaled.log_text()
    check_no_leak(scaled)


@pytest.mark.parametrize("policies", ["none, boundary and blend", "question"])
def test_a_hit_on_documents_never_changes_an_answer(
    servers: SharedServers, flags: tuple[str, ...], policies: str, full: bool
) -> None:
    server, rng, count = servers.get(*flags), random.Random(policies), 100 if full else 8
    requests: Sequence[SegmentedRequest] = (
        make_choosing_requests(rng, count, 300, 1300)
        if policies == "question"
        else make_requests(rng, count, most=8, longest=300, limit=1300)
    )
    cold = [_cold(server, partial(ask_segmented, server, request, ANSWER)) for request in requests]
    ways = {
        "warm": ask_all_segmented(server, requests, ANSWER, at_once=1),
        "after evictions": [_evicted(server, rng, request, number % 5 == 4) for number, request in enumerate(requests)],
        "in a batch": ask_all_segmented(server, requests, ANSWER, at_once=16),
    }
    check_no_leak(server)
    ways["cold in a batch"] = ask_all_segmented(server, requests, ANSWER, at_once=16)
    assert sum(report["cached_tokens"] for _, report in ways["warm"]) > sum(
        report["cached_tokens"] for _, report in cold
    )
    for way, answers in ways.items():
        assert [report.get("chosen_segments") for _, report in answers] == [
            report.get("chosen_segments") for _, report in cold
        ], way
        worst = _worst([answer for answer, _ in answers], [answer for answer, _ in cold])
        print(f"{policies}, {way}: largest logprob difference {worst:.1e}")
    check_no_leak(server)


def _cold(server: Server, answer: Callable[[], T]) -> T:
    server.flush()
    return answer()


def _evicted(
    server: Server, rng: random.Random, request: SegmentedRequest, push: bool
) -> tuple[Answer, dict[str, object]]:
    """The answer, if `push` after about half of the tree has been pushed out."""
    if push:
        for _ in range(4):
            server.generate(noise(rng, POOL // 8), 1)
    return ask_segmented(server, request, ANSWER)


def _worst(answers: Sequence[Answer], reference: Sequence[Answer]) -> float:
    return max(agree(answer, one, HIT_TOLERANCE).worst for answer, one in zip(answers, reference, strict=True))
