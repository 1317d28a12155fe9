# SPDX-License-Identifier: Apache-2.0
"""A hit equals a miss: randomised conversations under eviction, retraction, aborts, a flushed and a disabled cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serving import harness
from tests.serving.answers import Answer, agree, agree_with_oracle, ask, ask_again
from tests.serving.conversations import check_no_leak, make_conversations, play_all
from tests.serving.harness import Server
from tests.serving.maps import make_map, oracle_of, save_map

pytestmark = pytest.mark.serving

CONVERSATIONS, ALL_CONVERSATIONS = 12, 200
AT_ONCE = 12
SAMPLE, FULL_SAMPLE = 6, 200
HEAD_MAP = make_map(window=16, sink=4)
# A pool of a few conversations: the tree is evicted all the time.
SMALL = ("--max-total-tokens=3500", "--redknot-context-length=800", "--chunked-prefill-size=64")
# Few local slots for each global one, and an admission that counts on short answers: requests have to be retracted.
TIGHT = (
    "--max-total-tokens=6000",
    "--redknot-context-length=4000",
    "--chunked-prefill-size=64",
    "--schedule-conservativeness=0.01",
)
# On top of that SGLang throws out a request every few steps.
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "20"}


@dataclass(frozen=True)
class Played:
    """Figures of one run. worst: largest logprob difference, from the oracle and from the replays."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    retractions: int
    worst: float


def test_small_pool_with_the_cache_flushed_and_off(tmp_path: Path, full: bool) -> None:
    played = play_small(tmp_path, *_size(full))
    print(played)
    assert played.cached_tokens > played.prompt_tokens // 10, "without hits this shows nothing"


def test_retraction(tmp_path: Path, full: bool) -> None:
    played = play_tight(tmp_path, *_size(full))
    print(played)
    assert played.retractions > 0, "without retractions this shows nothing"


def _size(full: bool) -> tuple[int, int]:
    """Conversations, and how many of their answers are compared with flushed replays and the oracle."""
    return (ALL_CONVERSATIONS, FULL_SAMPLE) if full else (CONVERSATIONS, SAMPLE)


def play_small(folder: Path, count: int, sample: int) -> Played:
    """A pool that is too small, then the same prompts with the cache flushed before each, then without a cache."""
    with harness.launch(_args(folder, SMALL)) as server:
        answers = play_all(server, make_conversations(seed=1, count=count), AT_ONCE)
        chosen = random.Random(1).sample(answers, min(sample, len(answers)))
        check_no_leak(server)
        flushed = [_ask_after_flush(server, answer) for answer in chosen]
    with harness.launch(_args(folder, (*SMALL, "--disable-radix-cache"))) as server:
        off = ask_again(server, answers, AT_ONCE)
    assert not any(answer.cached for answer in (*flushed, *off)), "a reference must be computed from nothing"
    replays = [*zip(chosen, flushed, strict=True), *zip(answers, off, strict=True)]
    worst = max(agree(answer, reference).worst for answer, reference in replays)
    return _figures(answers, max(worst, _worst_by_oracle(chosen)))


def play_tight(folder: Path, count: int, sample: int) -> Played:
    """Pools out of proportion, so that requests run dry and are retracted; retracted ones are compared first."""
    with harness.launch(_args(folder, TIGHT), RETRACT) as server:
        answers = play_all(server, make_conversations(seed=2, count=count), AT_ONCE)
        check_no_leak(server)
    return _figures(answers, _worst_by_oracle(sorted(answers, key=lambda answer: -answer.retractions)[:sample]))


def _args(folder: Path, extra: Sequence[str]) -> list[str]:
    return ["--redknot", f"--redknot-head-map={save_map(HEAD_MAP, folder)}", *extra]


def _ask_after_flush(server: Server, answer: Answer) -> Answer:
    server.flush()
    return ask(server, answer.prompt, len(answer.tokens))


def _worst_by_oracle(answers: Sequence[Answer]) -> float:
    oracle = oracle_of(HEAD_MAP)
    return max(agree_with_oracle(answer, oracle) for answer in answers)


def _figures(answers: Sequence[Answer], worst: float) -> Played:
    return Played(
        len(answers),
        sum(len(answer.prompt) for answer in answers),
        sum(answer.cached for answer in answers),
        sum(answer.retractions for answer in answers),
        worst,
    )
