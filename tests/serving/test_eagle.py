# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding with a draft model: answers are those without, and its KV goes wherever the target's goes."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from redknot_sglang.heads import load_head_map
from tests.serving import harness
from tests.serving.answers import agree, ask, ask_all
from tests.serving.conversations import check_no_leak
from tests.serving.drafts import copying_draft, random_draft
from tests.serving.harness import Server
from tests.serving.maps import oracle_of
from tests.serving.prompts import mixed, noise
from tests.serving.segmented import (
    SEGMENTS,
    SMALL,
    SegmentedRequest,
)
from tests.serving.shared import SharedServers
from tests.serving.speculated import TOLERANCE, check_conversations, check_retractions, check_segmented

pytestmark = [pytest.mark.serving, pytest.mark.pinned]

# Longer than what stands behind a document, so that what a draft copies of it is the document's.
PERIOD = 8
STEPS, ANSWER = 4, 32
# So small that some requests have to be retracted: as many as have local slots at a time take more when they end.
POOL, LONG_ANSWER = 4000, 550
PLAIN = (*SEGMENTS, "--chunked-prefill-size=128")
ALL_GLOBAL = ("--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}", "--chunked-prefill-size=128")


def speculation(algorithm: str, draft: Path, steps: int = STEPS) -> tuple[str, ...]:
    return (
        f"--speculative-algorithm={algorithm}",
        f"--speculative-draft-model-path={draft}",
        f"--speculative-num-steps={steps}",
        "--speculative-eagle-topk=1",
        f"--speculative-num-draft-tokens={steps + 1}",
    )


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A server whose drafts are right about text that repeats itself."""
    draft = copying_draft(tmp_path_factory.mktemp("copying"), "EAGLE", PERIOD)
    small = (f"--max-total-tokens={POOL}", "--schedule-conservativeness=0.01")
    return (*SMALL, *small, *speculation("EAGLE", draft))


def repeating(rng: random.Random, lead: int | None = None) -> list[int]:
    """A prompt that says the same eight times, behind other text, and that the model goes on with so."""
    oracle = oracle_of(load_head_map(harness.HEAD_MAP))
    while True:
        unit = noise(rng, PERIOD)
        prompt = noise(rng, rng.randrange(1, 60) if lead is None else lead) + 8 * unit
        whole = prompt + ANSWER // PERIOD * unit
        expected = oracle.logprobs(whole)[len(prompt) - 1 : -1].argmax(-1).tolist()
        if expected == whole[len(prompt) :]:
            return prompt


def accepted(server: Server, prompt: list[int]) -> tuple[float, int]:
    """Tokens per step of an answer, and tokens of the prompt that were cached."""
    meta = server.generate(prompt, ANSWER)["meta_info"]
    return float(meta["spec_accept_length"]), meta["cached_tokens"]


def check_answers(server: Server, plain: Server, full: bool) -> None:
    rng = random.Random("eagle")
    prompts = [repeating(rng) for _ in range(4)]
    prompts += [mixed(rng, rng.randrange(1, 900)) for _ in range(100 if full else 6)]
    references = ask_all(plain, prompts, ANSWER, at_once=8)
    for at_once in (8, 1):
        answers = ask_all(server, prompts, ANSWER, at_once)
        found = [agree(answer, reference, TOLERANCE) for answer, reference in zip(answers, references, strict=True)]
        assert [each.tied for each in found] == [None] * len(prompts), "all tokens are the same"
    assert sum(answer.cached for answer in answers) > sum(len(prompt) for prompt in prompts) // 5
    check_no_leak(server)


def test_answers_are_those_without(servers: SharedServers, drafting: tuple[str, ...], full: bool) -> None:
    check_answers(servers.get(*drafting), servers.get(*PLAIN), full)


@pytest.mark.parametrize(("algorithm", "steps"), [("EAGLE3", STEPS), pytest.param("EAGLE", 1, marks=pytest.mark.full)])
def test_answers_are_those_without_under_bad_drafts(
    algorithm: str, steps: int, servers: SharedServers, tmp_path: Path, full: bool
) -> None:
    draft = random_draft(tmp_path / "draft", algorithm)
    server = servers.get(*ALL_GLOBAL, *speculation(algorithm, draft, steps))
    check_answers(server, servers.get(*ALL_GLOBAL), full)
    assert accepted(server, repeating(random.Random("bad")))[0] < 1.5


def test_drafts_of_a_cached_prefix_are_as_good(servers: SharedServers, drafting: tuple[str, ...]) -> None:
    server, rng = servers.get(*drafting), random.Random("cached")
    for _ in range(2):
        prompt = repeating(rng)
        cold, none = accepted(server, prompt)
        warm, cached = accepted(server, prompt)
        assert none == 0 and cached > len(prompt) - PERIOD // 2
        assert cold == warm > 3


def test_drafts_from_a_reused_document_are_as_good(servers: SharedServers, drafting: tuple[str, ...]) -> None:
    server, rng = servers.get(*drafting), random.Random("documents")
    document, found = repeating(rng, lead=0), []
    for lead in (0, 50, 7):
        prompt = noise(rng, lead) + document
        request = SegmentedRequest(prompt + document[:1], [lead, len(prompt)], "none")
        # All that is drafted here looks at rows of the document.
        sampling = {"custom_params": request.params}
        found.append(server.generate(request.prompt, PERIOD - 2, sampling_params=sampling)["meta_info"])
    assert [meta["spec_accept_length"] > 2 for meta in found] == 3 * [True]
    assert found[2]["redknot"]["relocated_tokens"] == len(document)


def test_eagle_3_drafts_are_accepted(servers: SharedServers, tmp_path: Path) -> None:
    draft = copying_draft(tmp_path / "draft", "EAGLE3", PERIOD)
    server = servers.get(*SMALL, *speculation("EAGLE3", draft, steps=1))
    prompt = repeating(random.Random("three"))
    answer, reference = ask(server, prompt, ANSWER), ask(servers.get(*PLAIN), prompt, ANSWER)
    assert agree(answer, reference, TOLERANCE).tied is None
    assert accepted(server, repeating(random.Random("3")))[0] > 1.5
    check_no_leak(server)


def test_conversations_with_clients_that_leave(servers: SharedServers, drafting: tuple[str, ...], full: bool) -> None:
    check_conversations(servers.get(*drafting), full)


def test_segmented_requests(servers: SharedServers, drafting: tuple[str, ...], full: bool) -> None:
    check_segmented(servers.get(*drafting), servers.get(*PLAIN), ANSWER, full)


def test_retracted_requests(servers: SharedServers, drafting: tuple[str, ...]) -> None:
    rng = random.Random("retractions")
    check_retractions(servers.get(*drafting), [repeating(rng) for _ in range(9)], LONG_ANSWER)


def test_weights_are_updated_and_those_of_the_draft_model_are_not(
    servers: SharedServers, drafting: tuple[str, ...]
) -> None:
    server, rng = servers.get(*drafting), random.Random("update")
    prompt, other = repeating(rng), repeating(rng)
    before, better = ask(server, prompt, ANSWER), partial(accepted, server, other)
    assert better()[0] > 3
    answer = server.post("/update_weights_from_disk", {"model_path": str(harness.MODEL)})
    assert answer.status_code == 200 and answer.json()["success"], answer.text
    after = ask(server, prompt, ANSWER)
    assert after.cached == 0 and agree(after, before, TOLERANCE).tied is None
    assert better()[0] > 3
    assert server.get("/redknot/status")["certificate"]["weights"] == "updated"
