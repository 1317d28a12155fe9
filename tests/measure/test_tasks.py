# SPDX-License-Identifier: Apache-2.0
"""Examples with one answer, with several, and with none that is named."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from eval import tasks
from redknot_sglang.measure.tasks import is_right, right_answers


@dataclass(frozen=True)
class Example:
    answer: str
    answers: tuple[str, ...] = ()


def rule(score: Any) -> Any:
    """A task package of which only the rule is there."""
    return SimpleNamespace(score=score)


@pytest.mark.parametrize(
    ("example", "answers"),
    [
        (Example("a"), ("a",)),
        (Example("a", ("b", "c")), ("b", "c")),
        (SimpleNamespace(answers=["b"]), ("b",)),
        (SimpleNamespace(), None),
    ],
)
def test_right_answers(example: Any, answers: tuple[str, ...] | None) -> None:
    assert right_answers(example) == answers


def test_the_tasks_own_rule_is_asked_for_every_answer() -> None:
    asked = []

    def score(example: Example, completion: str) -> bool:
        asked.append(example.answer)
        return completion.lower() == example.answer

    example = Example("unused", ("blue", "navy"))
    assert is_right(rule(score), example, "NAVY") and asked == ["blue", "navy"]
    assert not is_right(rule(score), example, "unused"), "only what is among the answers counts"
    assert example == Example("unused", ("blue", "navy")), "left as it was"
    assert is_right(rule(score), Example("red"), "Red") and not is_right(rule(score), Example("red"), "blue")


def test_a_rule_that_needs_no_answer_is_asked_once() -> None:
    example = SimpleNamespace(limit=3)
    assert is_right(rule(lambda found, completion: found is example and len(completion) < 3), example, "ab")


def test_the_checkouts_tasks_keep_their_rule() -> None:
    example = tasks.make_example("lookup", 256, 0)
    package: Any = tasks
    assert is_right(package, example, example.answer) and not is_right(package, example, example.answer + " red")
    assert right_answers(example) == (example.answer,)
