# SPDX-License-Identifier: Apache-2.0
"""Documents of random token ids, as many as one likes, and requests that draw them by popularity. For times, not for answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

from eval.gpu.ask import noise
from eval.rag.corpus import Frame, Question
from eval.rag.traffic import Dialogue, Turn

_LEAD, _ASK, _QUESTION = 16, 4, 12


class NoiseCorpus:
    """A `Corpus` whose documents share no prefix; no question comes twice."""

    def __init__(self, vocabulary: int, documents: int, tokens: int, seed: int) -> None:
        """vocabulary: token ids to draw from. documents: how many. tokens: of each. seed: distinct corpora by distinct seeds."""
        self._vocabulary = vocabulary
        self.documents = [noise(vocabulary, tokens, "document", seed, number) for number in range(documents)]
        self.frame = Frame(
            lead=noise(vocabulary, _LEAD, "lead"), ask=noise(vocabulary, _ASK, "ask"), answer=[], following=[]
        )

    @property
    def longest_question(self) -> int:
        """Tokens of any question."""
        return _QUESTION

    def ask(self, rng: random.Random, drawn: Sequence[int], before: Sequence[int]) -> tuple[list[int], Question]:
        """See `Corpus`: the documents as drawn, and a question from `rng`."""
        return list(drawn), Question(noise(self._vocabulary, _QUESTION, "question", rng.random()), None, "noise")


def draw(rng: random.Random, weights: Sequence[float], count: int) -> list[int]:
    """Numbers of `count` different documents, one after the other by weight among those that are left, in random order.

    weights: of each document, over 0. Raises ValueError if there are fewer documents.
    """
    if count > len(weights):
        raise ValueError(
            f"{count} documents a request of {len(weights)} in all; raise --documents or lower --per-request"
        )
    # Who comes first of exponential clocks with these rates is drawn by weight, and so is who comes next.
    clocks = [(rng.expovariate(weight), number) for number, weight in enumerate(weights)]
    drawn = [number for _, number in sorted(clocks)[:count]]
    rng.shuffle(drawn)
    return drawn


def permuted(corpus: NoiseCorpus, per_request: int, zipf: float, requests: int, seed: int) -> list[Dialogue]:
    """Requests of `per_request` documents each, in an order of their own.

    zipf: exponent of the documents' popularity, 0 for all alike; which ones are popular has nothing to do with their numbers.
    seed: of what is asked; who is popular is the same for all seeds. Raises ValueError as `draw`.
    """
    count = len(corpus.documents)
    ranks = random.Random(f"popularity {count}").sample(range(1, count + 1), count)
    weights = [rank**-zipf for rank in ranks]
    rng = random.Random(f"permuted {seed}")
    made: list[Dialogue] = []
    for _ in range(requests):
        documents, question = corpus.ask(rng, draw(rng, weights, per_request), [])
        made.append([Turn(documents, question)])
    return made
