# SPDX-License-Identifier: Apache-2.0
"""Conversations over documents, some of which arrive in the middle: what a retrieval chat looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import vocabulary as vocab
from .documents import Rng
from .examples import CONVERSATION, SYSTEM_PROMPTS, make_world, user_content
from .questions import FAMILIES, Question, ask
from .world import World


@dataclass(frozen=True)
class Turn:
    """Documents that arrive with this turn (often none), the question, and the answer it must get."""

    documents: list[str]
    question: str
    answer: str
    task: str

    def content(self, separator: str = "") -> str:
        """Text of the user message."""
        return user_content(self.documents, self.question, separator)


@dataclass(frozen=True)
class Conversation:
    """A system prompt and the turns; answers of one turn belong to the prompt of the next."""

    system: str
    turns: list[Turn]


def make_conversation(length: int, turns: int, seed: int) -> Conversation:
    """The conversation `seed`: `turns` questions over documents of about `length` tokens in all.

    Two thirds of the documents come with the first turn, the others one by one with later turns; a question
    needs only documents already given. Deterministic; raises ValueError for fewer than one turn or under 256
    tokens.
    """
    if turns < 1 or length < 256:
        raise ValueError(f"needs at least one turn and 256 tokens, got {turns} turns and {length} tokens")
    rng = np.random.default_rng(np.random.SeedSequence([CONVERSATION, turns, length, seed]))
    system = SYSTEM_PROMPTS[int(rng.integers(len(SYSTEM_PROMPTS)))]
    world = make_world(rng, length)
    texts = [vocab.decode(document.tolist()) for document in world.documents]
    given = arrivals(len(texts), turns)
    made = []
    for turn in range(turns):
        question = _draw_known(rng, world, given[turn])
        new = texts[given[turn - 1] if turn else 0 : given[turn]]
        made.append(Turn(new, vocab.decode(question.question), vocab.decode(question.answer), question.family))
    return Conversation(system, made)


def arrivals(documents: int, turns: int) -> list[int]:
    """Number of documents given up to each turn: two thirds at first, all by the last."""
    first = documents if turns == 1 else max(1, round(documents * 2 / 3))
    return [first + (documents - first) * turn // max(1, turns - 1) for turn in range(turns)]


def _draw_known(rng: Rng, world: World, given: int) -> Question:
    """A question of a random family that the first `given` documents answer."""
    document = world.place[:, 0]
    for family in rng.permutation(FAMILIES).tolist():
        known = [item for item in world.items[family] if all(document[row] < given for row in item)]
        if known:
            return ask(world, family, known[int(rng.integers(len(known)))])
    raise ValueError(f"the first {given} documents answer no question; use longer documents")
