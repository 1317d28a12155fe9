# SPDX-License-Identifier: Apache-2.0
"""What is asked and when: dialogues over shared documents, their prompts, and arrivals; all from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate

from eval.rag.corpus import Corpus, Question

PERMUTED, MULTITURN = "permuted", "multiturn"
KINDS = (PERMUTED, MULTITURN)


@dataclass(frozen=True)
class Turn:
    """Numbers of the documents that a turn brings, in order, and its question."""

    documents: list[int]
    question: Question


Dialogue = list[Turn]
"""A permuted request is a dialogue of one turn."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a kind of traffic.

    turns: turns of a dialogue.
    documents: documents that a turn brings.
    back: chance, 0 to 1, that a document of a later turn is one of an earlier turn, which then stands in the prompt twice.
    """

    turns: int
    documents: int
    back: float = 0.0

    def longest_prompt(self, corpus: Corpus, answer_tokens: int) -> int:
        """Tokens that no prompt exceeds, with answers of at most `answer_tokens` in it."""
        frame = corpus.frame
        longest = max(map(len, corpus.documents))
        turn = self.documents * longest + len(frame.ask) + corpus.longest_question + len(frame.answer)
        return len(frame.lead) + self.turns * turn + (self.turns - 1) * (answer_tokens + len(frame.following))


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the flat offsets [start, end, ...] of the documents in them."""

    ids: list[int]
    offsets: list[int]

    @property
    def digest(self) -> str:
        """Tells prompts apart in a result file."""
        return sha256(",".join(map(str, self.ids)).encode()).hexdigest()[:16]


def prompt_of(corpus: Corpus, turns: Sequence[Turn], answers: Sequence[Sequence[int]]) -> Prompt:
    """The prompt of the last of `turns`; answers: token ids received in the turns before it, without end marker."""
    frame, offsets = corpus.frame, list[int]()
    ids = list(frame.lead)
    for number, turn in enumerate(turns):
        for document in turn.documents:
            offsets += [len(ids), len(ids) + len(corpus.documents[document])]
            ids += corpus.documents[document]
        ids += [*frame.ask, *turn.question.ids, *frame.answer]
        if number + 1 < len(turns):
            ids += [*answers[number], *frame.following]
    return Prompt(ids, offsets)


def make_dialogues(corpus: Corpus, kind: str, shape: Shape, requests: int, seed: int) -> list[Dialogue]:
    """Dialogues with `requests` turns in all; the last one may be shorter.

    Every turn draws its documents anew and in an order of its own, so dialogues share documents by chance. Raises
    ValueError if a turn brings more documents than there are.
    """
    if shape.documents > len(corpus.documents):
        raise ValueError(
            f"{kind}: {shape.documents} documents a request of {len(corpus.documents)} in all; raise --documents"
        )
    rng = random.Random(f"{kind} {seed}")
    made: list[Dialogue] = []
    while requests > 0:
        made.append(_dialogue(corpus, rng, shape, min(shape.turns, requests)))
        requests -= shape.turns
    return made


def _dialogue(corpus: Corpus, rng: random.Random, shape: Shape, turns: int) -> Dialogue:
    made: Dialogue = []
    before: list[int] = []
    for _ in range(turns):
        seen = sorted(set(before))
        unseen = [document for document in range(len(corpus.documents)) if document not in seen]
        back = sum(rng.random() < shape.back for _ in range(shape.documents))
        # A long dialogue runs out of new documents and can only return.
        back = min(len(seen), max(back, shape.documents - len(unseen)))
        drawn = rng.sample(seen, back) + rng.sample(unseen, shape.documents - back)
        rng.shuffle(drawn)
        documents, question = corpus.ask(rng, drawn, before)
        made.append(Turn(documents, question))
        before += documents
    return made


def make_warm_up(corpus: Corpus, documents: int) -> list[Dialogue]:
    """Requests of up to `documents` documents that together bring every document once; they ask nothing."""
    numbers = list(range(len(corpus.documents)))
    return [
        [Turn(numbers[at : at + documents], Question([], None, "warm-up"))] for at in range(0, len(numbers), documents)
    ]


def make_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which `count` dialogues arrive: Poisson arrivals, the last one after `count / rate` seconds.

    Of a few arrivals the rate would otherwise be off by tens of per cent.
    """
    rng = random.Random(f"arrivals {seed}")
    times = list(accumulate(rng.expovariate(rate) for _ in range(count)))
    return [at * count / rate / times[-1] for at in times]
