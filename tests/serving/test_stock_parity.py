# SPDX-License-Identifier: Apache-2.0
"""With every head global, --redknot serves what stock SGLang serves: chunked prefill, batch of 8, greedy."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from eval.agreement import compare as agreement
from eval.agreement import replies
from tests.serving import harness
from tests.serving.answers import TOLERANCE, agree, ask_all
from tests.serving.harness import Server
from tests.serving.prompts import mixed

pytestmark = pytest.mark.serving

PROMPTS, ALL_PROMPTS = 16, 100
BF16_TIE = 2e-2
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
def test_in_bf16_as_near_as_stock_to_itself() -> None:
    """bf16 rounds by more than any useful bound: the control is stock with its prompts cut into other chunks."""
    flags = ["--dtype=bfloat16", "--enable-fp32-lm-head"]
    sides = {"stock": flags, "control": [*flags, "--chunked-prefill-size=256"], "redknot": _all_global(*flags)}
    found = {}
    for name, args in sides.items():
        with harness.launch(args) as server:
            found[name] = replies(server.url, random_prompts(ALL_PROMPTS), ANSWER)
    control, ours = (agreement(found[name], found["stock"], BF16_TIE) for name in ("control", "redknot"))
    print("control", control, "redknot", ours, sep="\n")
    assert ours.answer_mean < 2 * control.answer_mean and ours.forced_mean < 2 * control.forced_mean
    assert ours.answer_p99 < 2 * control.answer_p99 and ours.forced_p99 < 2 * control.forced_p99
    assert ours.finite
    assert ours.parted <= control.parted + ALL_PROMPTS // 20


def check(parity: Parity, count: int) -> None:
    """A few ties are in the nature of text; many say that something else is wrong."""
    print(f"{count} prompts, {parity}")
    assert parity.ties <= count // 8


def compare(stock: Server, redknot: Server, count: int, tolerance: float = TOLERANCE) -> Parity:
    """Ask both servers `count` prompts. Raises AssertionError at the first difference beyond the tolerance that is no tie."""
    prompts = random_prompts(count)
    expected = ask_all(stock, prompts, ANSWER, AT_ONCE)
    found = ask_all(redknot, prompts, ANSWER, AT_ONCE)
    compared = [agree(answer, reference, tolerance) for answer, reference in zip(found, expected, strict=True)]
    return Parity(max(one.worst for one in compared), sum(one.tied is not None for one in compared))


def random_prompts(count: int) -> list[list[int]]:
    """The first `count` prompts of the one sequence that all tests here use."""
    rng = random.Random(1)
    return [mixed(rng, rng.randrange(*LENGTHS)) for _ in range(count)]


def _all_global(*args: str) -> list[str]:
    return ["--redknot", f"--redknot-head-map={harness.ALL_GLOBAL}", *args]
