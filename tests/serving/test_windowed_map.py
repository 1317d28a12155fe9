# SPDX-License-Identifier: Apache-2.0
"""A served windowed map equals the oracle's dense masks, cold and with prefix hits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.serving import harness
from tests.serving.answers import Answer, agree_with_oracle, ask_all
from tests.serving.maps import make_map, oracle_of, save_map
from tests.serving.prompts import mixed, noise

pytestmark = pytest.mark.serving

CHUNKS, SINKS, WINDOWS = (64, 512, 2048), (0, 1, 4), (16, 128, 512)
# Every chunk size, sink and window once; the other cases of the grid run with --full.
CASES = tuple(zip(CHUNKS, SINKS, (128, 512, 16), strict=True))
OTHERS = [case for case in itertools.product(CHUNKS, SINKS, WINDOWS) if case not in CASES]
# Shorter and longer than the windows; the longest fills several chunks of every size but the largest.
LENGTHS, ALL_LENGTHS = (300, 777), (300, 777, 1500)
ANSWER = 8


@pytest.mark.parametrize(
    ("chunk", "sink", "window"), [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in OTHERS)]
)
def test_equals_the_oracle_cold_and_with_hits(chunk: int, sink: int, window: int, tmp_path: Path, full: bool) -> None:
    lengths = ALL_LENGTHS if full else LENGTHS
    print(f"largest logprob difference {check(chunk, sink, window, tmp_path, lengths):.1e}")


def check(chunk: int, sink: int, window: int, folder: Path, lengths: Sequence[int]) -> float:
    """Serve the map, ask in every way, compare all answers; returns the largest logprob difference."""
    head_map = make_map(window, sink)
    args = ["--redknot", f"--redknot-head-map={save_map(head_map, folder)}", f"--chunked-prefill-size={chunk}"]
    with harness.launch(args) as server:
        answers = visit(server, random.Random(f"{chunk} {sink} {window}"), lengths)
    oracle = oracle_of(head_map)
    return max(agree_with_oracle(answer, oracle) for answer in answers)


def visit(server: harness.Server, rng: random.Random, lengths: Sequence[int]) -> list[Answer]:
    """Prompts of these lengths cold, again, extended, and left in the middle three times; asserts the hits."""

    def ask(prompts: list[list[int]]) -> list[Answer]:
        return ask_all(server, prompts, ANSWER, at_once=len(prompts))

    prompts = [mixed(rng, length) for length in lengths]
    cold = ask(prompts)
    assert not any(answer.cached for answer in cold), "unrelated prompts share nothing"
    again = ask(prompts)
    assert [answer.cached for answer in again] == [length - 1 for length in lengths]
    extended = ask([answer.prompt + answer.tokens + noise(rng, 61) for answer in again])
    assert all(answer.cached >= length for answer, length in zip(extended, lengths, strict=True))
    cuts = [length * 5 // 9 for length in lengths]
    branches = [
        ask([prompt[:cut] + noise(rng, 90) for prompt, cut in zip(prompts, cuts, strict=True)]) for _ in range(3)
    ]
    # The first visit finds no local tail at the branch and leaves one for those after it.
    assert [answer.cached for answer in branches[2]] == cuts
    return [*cold, *again, *extended, *(answer for branch in branches for answer in branch)]
