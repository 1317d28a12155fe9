# SPDX-License-Identifier: Apache-2.0
"""Questions over a world: for each family the question and the answer it must get, written out in steps."""

from __future__ import annotations

from dataclasses import dataclass

from . import vocabulary as vocab
from .world import World

FAMILIES = ("lookup", "multivalue", "tracking", "twohop", "crossdoc")

_NEWLINE = vocab.encode("\n")[0]
_MARK = vocab.encode("?")[0]
_MORE = vocab.token_id(" more")
_VISITS, _VALUE, _MANAGER = (vocab.token_id(w) for w in ("visits", "value", " manager"))


@dataclass(frozen=True)
class Question:
    """Ids of the question and of the answer (without end marker).

    steps: (index in `answer` of the token before a retrieved value, fact row that holds the value).
    """

    family: str
    question: list[int]
    answer: list[int]
    steps: list[tuple[int, int]]


def question_tokens(family: str) -> int:
    """Number of tokens of a question of the family."""
    return 4 if family == "twohop" else 3


def ask(world: World, family: str, item: tuple[int, ...]) -> Question:
    """The question that `item`, one of `world.items[family]`, stands for."""
    facts = [world.facts[row].tolist() for row in item]
    (a, b, _), rows = facts[0], item
    if family == "lookup":
        question = [a, b, _MARK]
    elif family == "multivalue":
        question = [_VISITS, b, _MARK]
    elif family == "tracking":
        question = [_VALUE, b, _MARK]
    elif family == "twohop":
        question = [facts[1][0], _MANAGER, b, _MARK]
    elif family == "crossdoc":
        # Answered without naming the reference: the model must have resolved it where it stands in its
        # document.
        question, facts, rows = [a, b, _MARK], [[a, b, facts[1][2]]], item[:1]
    else:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    answer: list[int] = []
    steps = []
    for fact, row in zip(facts, rows, strict=True):
        if answer:
            answer += [_MORE, _NEWLINE] if family == "multivalue" else [_NEWLINE]
        steps.append((len(answer) + 1, row))
        answer += fact
    return Question(family, question, answer, steps)
