# SPDX-License-Identifier: Apache-2.0
"""A server with `--radix-eviction-policy redknot` in a small pool, with and without a host tier: a hit is a miss, and nothing leaks."""

from __future__ import annotations

import random

import pytest

from tests.serving import harness
from tests.serving.answers import TOLERANCE, agree, ask_all
from tests.serving.conversations import check_no_leak
from tests.serving.prompts import noise
from tests.serving.segmented import SEGMENTS, ask_all_segmented, make_requests
from tests.serving.shared import SharedServers
from tests.versions import needs_host_tier

pytestmark = pytest.mark.serving

HOST = ("--enable-hierarchical-cache", "--hicache-ratio=1.5")
ROOM = (*SEGMENTS, "--chunked-prefill-size=128", "--radix-eviction-policy=redknot")


@pytest.mark.parametrize("host", [(), pytest.param(HOST, marks=needs_host_tier)], ids=["device", "host"])
def test_a_hit_is_a_miss_while_others_push_it_out(servers: SharedServers, host: tuple[str, ...], full: bool) -> None:
    rng = random.Random("retention")
    popular = [noise(rng, 300) for _ in range(4)]
    prompts = [
        (rng.choice(popular) if number % 2 else noise(rng, 300)) + noise(rng, 20)
        for number in range(80 if full else 24)
    ]
    requests = make_requests(rng, 24 if full else 6, most=4, longest=200, limit=800)
    server = servers.get(*ROOM, "--max-total-tokens=15500")
    cold = ask_all(server, prompts, 4, at_once=1)
    segmented = [answer for answer, _ in ask_all_segmented(server, requests, 6, at_once=2)]
    with harness.launch([*ROOM, *host, "--max-total-tokens=3600"]) as server:
        for _ in range(2):
            answers = ask_all(server, prompts, 4, at_once=3)
            again = [answer for answer, _ in ask_all_segmented(server, requests, 6, at_once=4)]
            for answer, expected in zip([*answers, *again], [*cold, *segmented], strict=True):
                agree(answer, expected, TOLERANCE)
        check_no_leak(server)
        tiers = server.get("/redknot/status")["tiers"]
    assert any(answer.cached > 0 for answer in answers), "the pool was to hold something"
    evicted = tiers["evicted_tokens"]
    if host:
        assert all(evicted[move]["global"] > 0 for move in ("demoted", "host_dropped")), evicted
        assert evicted["cooled"]["global"] > 0 and tiers["hit_tokens"]["host"]["global"] > 0
    else:
        assert evicted["dropped"]["global"] > 0 and evicted["demoted"] == {"global": 0, "local": 0}
