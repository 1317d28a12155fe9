# SPDX-License-Identifier: Apache-2.0
"""Documents that requests share, and the questions about them; all as token ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """Token ids of a question; the answer it must get, None where that is not known, and the task it belongs to."""

    ids: list[int]
    answer: str | None
    task: str


@dataclass(frozen=True)
class Frame:
    """Token ids of what stands around documents, questions and answers.

    lead: before the first turn's documents.
    ask: between documents and question.
    answer: between question and answer.
    following: between an answer and the next turn's documents.
    """

    lead: list[int]
    ask: list[int]
    answer: list[int]
    following: list[int]


class Corpus(Protocol):
    """Where documents come from. Documents and questions are tokenized by themselves, so that a document has the same
    token ids in every prompt."""

    @property
    def frame(self) -> Frame:
        """What stands around them."""

    @property
    def documents(self) -> Sequence[list[int]]:
        """Token ids of each document."""

    @property
    def longest_question(self) -> int:
        """Tokens of the longest question that `ask` gives."""

    def ask(self, rng: random.Random, drawn: Sequence[int], before: Sequence[int]) -> tuple[list[int], Question]:
        """A question over documents, for a turn that brings `drawn` after `before`.

        drawn: numbers of documents, each once. before: those of earlier turns in the order of the prompt, possibly
        repeated. Returns the turn's documents, as many as in `drawn`, in an order in which the question is well
        defined; some that are new to the dialogue may be others than those drawn. Raises ValueError where no question
        can be asked.
        """
