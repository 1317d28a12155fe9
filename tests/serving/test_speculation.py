# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding by n-grams: answers are those without it, and slots of rejected rows are nobody's."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.serving import harness
from tests.serving.answers import agree, ask, ask_all
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.prompts import mixed, noise
from tests.serving.segmented import SEGMENTS, SMALL, SMALL_POOL
from tests.serving.shared import SharedServers
from tests.serving.speculated import check_conversations, check_retractions, check_segmented

pytestmark = [pytest.mark.serving, pytest.mark.pinned]

DRAFT = 6
SPECULATION = (
    "--speculative-algorithm=NGRAM",
    "--speculative-ngram-max-bfs-breadth=1",
    f"--speculative-num-draft-tokens={DRAFT}",
)
# A pool that holds a few requests, and an admission that counts on short answers: some requests have to be retracted.
DRAFTING = (*SMALL, "--schedule-conservativeness=0.01", *SPECULATION)
PLAIN = (*SEGMENTS, "--chunked-prefill-size=128")
ALL_GLOBAL = ("--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}", "--chunked-prefill-size=128")
ANSWER = 40


def repeating(rng: random.Random) -> list[int]:
    """A prompt that says the same a few times, as does what the model goes on with."""
    return noise(rng, rng.randrange(1, 60)) + rng.randrange(8, 20) * noise(rng, rng.randrange(1, 9))


def accepted(server: Server, prompt: list[int]) -> float:
    """Tokens per step of an answer."""
    return float(server.generate(prompt, ANSWER)["meta_info"]["spec_accept_length"])


@pytest.mark.parametrize(
    ("drafting", "plain"),
    [(DRAFTING, PLAIN), pytest.param((*ALL_GLOBAL, *SPECULATION), ALL_GLOBAL, marks=pytest.mark.full)],
)
def test_answers_are_those_without(
    servers: SharedServers, drafting: Sequence[str], plain: Sequence[str], full: bool
) -> None:
    rng = random.Random("speculation")
    prompts = [repeating(rng) for _ in range(10)]
    prompts += [mixed(rng, rng.randrange(1, 900)) for _ in range(100 if full else 10)]
    references = ask_all(servers.get(*plain), prompts, ANSWER, at_once=8)
    server = servers.get(*drafting)
    # The second time prompts are cached, and the answers are what drafts are made of.
    for at_once in (8, 1):
        answers = ask_all(server, prompts, ANSWER, at_once)
        ties = [agree(answer, reference).tied for answer, reference in zip(answers, references, strict=True)]
        assert ties == [None] * len(prompts), "all tokens are the same"
    assert sum(answer.cached for answer in answers) > sum(len(prompt) for prompt in prompts) // 5
    # Repeats itself, and was never asked before.
    assert accepted(server, repeating(rng)) > 1.5
    check_no_leak(server)


# Those of a draft model, whose KV has to go with the target's, are daily (test_eagle.py).
@pytest.mark.full
def test_conversations_with_clients_that_leave(servers: SharedServers, full: bool) -> None:
    check_conversations(servers.get(*DRAFTING), full)


def test_segmented_requests(servers: SharedServers, full: bool) -> None:
    check_segmented(servers.get(*DRAFTING), servers.get(*PLAIN), ANSWER, full)


def test_retracted_requests(servers: SharedServers) -> None:
    rng = random.Random("retractions")
    # As many as have local slots at a time take more than the global pool when they end, and less when they begin.
    check_retractions(servers.get(*DRAFTING), [mixed(rng, 100) for _ in range(14)], SMALL_POOL // 8)


def test_weights_are_updated(servers: SharedServers) -> None:
    """SGLang looks for a draft model to update as well."""
    server, prompt = servers.get(*DRAFTING), mixed(random.Random("update"), 300)
    before = ask(server, prompt, ANSWER)
    answer = server.post("/update_weights_from_disk", {"model_path": str(harness.MODEL)})
    assert answer.status_code == 200 and answer.json()["success"], answer.text
    after = ask(server, prompt, ANSWER)
    assert after.cached == 0 and agree(after, before).tied is None
    assert server.get("/redknot/status")["certificate"]["weights"] == "updated"
