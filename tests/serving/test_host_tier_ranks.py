# SPDX-License-Identifier: Apache-2.0
"""The host tier of two tensor-parallel ranks: both move the same nodes, each its own heads, and answers are those of one rank without it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving import harness
from tests.serving.answers import agree, ask, ask_all
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.maps import RETRIEVAL_OF_LOPSIDED, lopsided_map
from tests.serving.prompts import noise
from tests.serving.ranks import TWO_RANKS, needs_two
from tests.serving.segmented import SegmentedRequest, ask_segmented
from tests.serving.test_host_tier import POOL, loaded, push_out, tiers
from tests.versions import needs_host_tier

pytestmark = [pytest.mark.serving, needs_two, needs_host_tier]

ANSWER, TOLERANCE = 6, 1e-4
FLAGS = ("--redknot", "--redknot-segment-length=300", "--chunked-prefill-size=128", "--enable-metrics")
TIERED = (f"--max-total-tokens={POOL}", "--enable-hierarchical-cache", "--hicache-ratio=8", "--tp-size=2")


@pytest.fixture(scope="module")
def head_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All global heads would be on the first rank, so they are dealt out."""
    path = tmp_path_factory.mktemp("map") / "map.json"
    lopsided_map(RETRIEVAL_OF_LOPSIDED).save(path)
    return path


@pytest.fixture(scope="module")
def one(head_map: Path) -> Iterator[Server]:
    with harness.launch([*FLAGS, f"--redknot-head-map={head_map}", "--disable-radix-cache"]) as server:
        yield server


@pytest.fixture(scope="module")
def two(head_map: Path) -> Iterator[Server]:
    with harness.launch([*FLAGS, f"--redknot-head-map={head_map}", *TIERED], TWO_RANKS) as server:
        yield server
        check_no_leak(server)


def test_prompts_come_back_in_the_middle_of_a_batch(one: Server, two: Server) -> None:
    rng = random.Random("ranks")
    prompts = [noise(rng, rng.randrange(150, 500)) for _ in range(6)]
    expected = ask_all(one, prompts, ANSWER, at_once=3)
    ask_all(two, prompts, ANSWER, at_once=3)
    push_out(two, rng)
    before = loaded(two)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(two.generate, noise(rng, 260), 60) for _ in range(2)]
        again = ask_all(two, prompts, ANSWER, at_once=6)
        assert all(len(other.result()["output_ids"]) == 60 for other in running)
    for answer, reference in zip(again, expected, strict=True):
        agree(answer, reference, TOLERANCE)
    assert loaded(two)["global"] > before["global"] + 1000 and loaded(two)["local"] > before["local"]


@pytest.mark.parametrize("policy", ["boundary:16", "blend:0.1", "question:1"])
def test_documents_come_back(two: Server, policy: str) -> None:
    """On each rank its own heads of them, and the rows and documents that are chosen stay those of both together."""
    rng = random.Random(f"ranks {policy}")
    documents = [noise(rng, length) for length in (200, 90, 300)]
    prompt, offsets = noise(rng, 20), list[int]()
    for document in documents:
        offsets += [len(prompt), len(prompt) + len(document)]
        prompt = [*prompt, *document]
    request = SegmentedRequest([*prompt, *noise(rng, 30)], offsets, policy)
    cold, chosen = ask_segmented(two, request, ANSWER)
    push_out(two, rng)
    before = loaded(two)
    warm, again = ask_segmented(two, request, ANSWER)
    agree(warm, cold, TOLERANCE)
    assert loaded(two)["global"] > before["global"]
    assert again.get("chosen_segments") == chosen.get("chosen_segments")
    assert again["repaired_tokens"] == chosen["repaired_tokens"]


def test_bytes_are_those_of_both_ranks(two: Server) -> None:
    rng = random.Random("bytes")
    prompt = noise(rng, 600)
    ask(two, prompt, ANSWER)
    push_out(two, rng)
    before = tiers(two)
    ask(two, prompt, ANSWER)
    after = tiers(two)
    classes = two.get("/redknot/status")["classes"]
    for name, of in classes.items():
        tokens, sent = (
            after[what]["loaded_back"][name] - before[what]["loaded_back"][name]
            for what in ("copied_tokens", "copied_bytes")
        )
        assert sent == tokens * of["bytes_per_slot"] > 0
