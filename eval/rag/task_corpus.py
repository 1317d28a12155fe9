# SPDX-License-Identifier: Apache-2.0
"""Documents of one generated world, with the embedded model's tasks as questions; answers are known."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from eval.rag.corpus import Frame, Question
from eval.tasks import TASKS
from eval.tasks.examples import QUESTION_HEAD, SYSTEM_PROMPTS, TRAFFIC
from eval.tasks.questions import FAMILIES, ask, question_tokens
from eval.tasks.vocabulary import ASSISTANT, BOS, END, SYSTEM, USER, decode, encode
from eval.tasks.world import build_world

# Every document takes a label of the 400 that a world has; with more documents the tasks that need labels run dry.
MOST_DOCUMENTS = 128
_PROSE_SHARE = 0.3


class TaskCorpus:
    """Documents of exactly the same number of tokens. Keys are unique in a world, so any of its documents go together.

    A question is asked over the documents that a prompt has by then. In any order it is the same question, but for
    tasks that are `causal_only`, in which the definition must come before the use: where both are new and the drawn
    order has them the other way round, the two change places, as in eval/bench_repair.py.
    """

    def __init__(self, documents: int, tokens: int, seed: int) -> None:
        """`documents` documents of `tokens` tokens. Raises ValueError for sizes that cannot be."""
        if not 1 <= documents <= MOST_DOCUMENTS:
            raise ValueError(
                f"generated documents share one world, which holds 1 to {MOST_DOCUMENTS} of them, not {documents}; "
                "use fewer and longer ones, or give a file with --data"
            )
        rng = np.random.default_rng(np.random.SeedSequence([TRAFFIC, documents, tokens, seed]))
        self._world = build_world(rng, [tokens] * documents, _PROSE_SHARE)
        system = SYSTEM_PROMPTS[int(rng.integers(len(SYSTEM_PROMPTS)))]
        self.frame = Frame(
            lead=encode(f"{BOS}{SYSTEM}{system}{END}{USER}"),
            ask=encode(QUESTION_HEAD),
            answer=encode(END + ASSISTANT),
            following=encode(END + USER),
        )
        self.documents: list[list[int]] = [document.tolist() for document in self._world.documents]
        self._place: list[int] = self._world.place[:, 0].tolist()

    @property
    def longest_question(self) -> int:
        """Tokens of the longest question."""
        return max(map(question_tokens, FAMILIES))

    def ask(self, rng: random.Random, drawn: Sequence[int], before: Sequence[int]) -> tuple[list[int], Question]:
        """See `Corpus`. The question needs at least one of the turn's own documents."""
        new, order, given = set(drawn), list(drawn), [*before, *drawn]
        for family in rng.sample(FAMILIES, len(FAMILIES)):
            known = [
                item
                for item in self._world.items[family]
                if new & self._held(item) and self._is_well_defined(family, item, given, set(before))
            ]
            if known:
                item = rng.choice(known)
                if TASKS[family].causal_only:
                    _exchange(order, *self._use_and_definition(item), set(before))
                found = ask(self._world, family, item)
                return order, Question(found.question, decode(found.answer), family)
        raise ValueError(
            f"the {len(set(given))} documents of a prompt answer no question; use more of them, or longer ones"
        )

    def _held(self, item: tuple[int, ...]) -> set[int]:
        """Documents that hold the facts of a question."""
        return {self._place[row] for row in item}

    def _use_and_definition(self, item: tuple[int, ...]) -> tuple[int, int]:
        use, definition = item
        return self._place[use], self._place[definition]

    def _is_well_defined(self, family: str, item: tuple[int, ...], given: list[int], before: set[int]) -> bool:
        if not self._held(item) <= set(given):
            return False
        if not TASKS[family].causal_only:
            return True
        use, definition = self._use_and_definition(item)
        # A document that came before its definition keeps the unresolved use in the prompt, wherever it comes again.
        return given.index(definition) < given.index(use) or not {use, definition} & before


def _exchange(order: list[int], use: int, definition: int, before: set[int]) -> None:
    """Let two documents that are new change places if the use comes first."""
    if {use, definition} & before:
        return
    a, b = order.index(definition), order.index(use)
    if a > b:
        order[a], order[b] = use, definition
