# SPDX-License-Identifier: Apache-2.0
"""With every head global, --redknot serves what stock SGLang serves: chunked prefill, batch of 8, greedy."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.serving.answers import agree, ask_all
from tests.serving.harness import Server
from tests.serving.prompts import mixed

pytestmark = pytest.mark.serving

PROMPTS = 24
LENGTHS = (1000, 3000)
ANSWER = 8
AT_ONCE = 8


@dataclass(frozen=True)
class Parity:
    """worst: largest logprob difference. ties: answers that part where stock's two best tokens tie."""

    worst: float
    ties: int


def test_all_global_map_equals_stock(stock_server: Server, all_global_server: Server) -> None:
    parity = compare(stock_server, all_global_server, PROMPTS)
    assert parity.ties <= PROMPTS // 8, "ties are rare; so many say that something else is wrong"


def compare(stock: Server, redknot: Server, count: int) -> Parity:
    """Ask both servers `count` prompts. Raises AssertionError at the first difference that is no tie."""
    rng = random.Random(1)
    prompts = [mixed(rng, rng.randrange(*LENGTHS)) for _ in range(count)]
    expected = ask_all(stock, prompts, ANSWER, AT_ONCE)
    found = ask_all(redknot, prompts, ANSWER, AT_ONCE)
    compared = [agree(answer, reference) for answer, reference in zip(found, expected, strict=True)]
    return Parity(max(one.worst for one in compared), sum(one.tied is not None for one in compared))
