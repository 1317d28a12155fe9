# SPDX-License-Identifier: Apache-2.0
"""With every head global, --redknot serves what stock SGLang serves: chunked prefill, batch of 8, greedy."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.serving import harness
from tests.serving.answers import TOLERANCE, agree, ask_all
from tests.serving.harness import Server
from tests.serving.prompts import mixed

pytestmark = pytest.mark.serving

PROMPTS, ALL_PROMPTS = 24, 100
BF16_TOLERANCE = 2e-2
LENGTHS = (1000, 3000)
ANSWER = 8
AT_ONCE = 8


@dataclass(frozen=True)
class Parity:
    """worst: largest logprob difference. ties: answers that part where stock's two best tokens tie."""

    worst: float
    ties: int


def test_all_global_map_equals_stock(stock_server: Server, all_global_server: Server, full: bool) -> None:
    count = ALL_PROMPTS if full else PROMPTS
    check(compare(stock_server, all_global_server, count), count)


@pytest.mark.full
def test_in_bf16() -> None:
    dtype = "--dtype=bfloat16"
    with harness.launch([dtype]) as stock, harness.launch(_all_global(dtype)) as redknot:
        check(compare(stock, redknot, ALL_PROMPTS, BF16_TOLERANCE), ALL_PROMPTS)


def check(parity: Parity, count: int) -> None:
    """A few ties are in the nature of text; many say that something else is wrong."""
    print(f"{count} prompts, {parity}")
    assert parity.ties <= count // 8


def compare(stock: Server, redknot: Server, count: int, tolerance: float = TOLERANCE) -> Parity:
    """Ask both servers `count` prompts. Raises AssertionError at the first difference that is no tie."""
    rng = random.Random(1)
    prompts = [mixed(rng, rng.randrange(*LENGTHS)) for _ in range(count)]
    expected = ask_all(stock, prompts, ANSWER, AT_ONCE)
    found = ask_all(redknot, prompts, ANSWER, AT_ONCE)
    compared = [agree(answer, reference, tolerance) for answer, reference in zip(found, expected, strict=True)]
    return Parity(max(one.worst for one in compared), sum(one.tied is not None for one in compared))


def _all_global(*args: str) -> list[str]:
    return ["--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}", *args]
