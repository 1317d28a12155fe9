# SPDX-License-Identifier: Apache-2.0
"""Made-up traffic: requests that come at random times and have documents of a corpus in a random order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from redknot_sglang.route.parts import Part, Prompt, Wanted, key_of


@dataclass(frozen=True)
class Traffic:
    """What requests are like.

    corpus: how many documents there are.
    documents: how many of them a request has, each once.
    document_tokens: length of a document.
    text_tokens: tokens of a prompt beside its documents.
    answer_tokens: tokens of an answer.
    skew: exponent of Zipf's law: the i-th document is asked for in proportion to i to the power of -skew.
    topics: parts of the corpus, of which a request is about one. 1: documents are drawn independently.
    stray: how much less likely documents of other topics are.
    """

    corpus: int = 256
    documents: int = 16
    document_tokens: int = 1024
    text_tokens: int = 192
    answer_tokens: int = 128
    skew: float = 1.0
    topics: int = 1
    stray: float = 0.01

    @property
    def prompt_tokens(self) -> int:
        """Length of a prompt."""
        return self.documents * self.document_tokens + self.text_tokens


@dataclass(frozen=True)
class Arrival:
    """A request. at: seconds from the beginning. documents: numbers, in the prompt's order."""

    at: float
    documents: tuple[int, ...]


def arrivals(traffic: Traffic, rate: float, count: int, seed: int) -> Iterator[Arrival]:
    """Requests of a Poisson process.

    rate: requests a second on average. count: how many. seed: of everything random; the same traffic has the same requests
    whatever the rate.
    """
    rng, times = random.Random(f"documents {seed}"), random.Random(f"times {seed}")
    ranks = list(range(traffic.corpus))
    rng.shuffle(ranks)
    weights = [(1 + rank) ** -traffic.skew for rank in ranks]
    topics = range(traffic.topics)
    popular = [(1 + topic) ** (-traffic.skew / 2) for topic in topics]
    at = 0.0
    for _ in range(count):
        at += times.expovariate(rate)
        topic = rng.choices(topics, popular)[0]
        chances = [w if i % traffic.topics == topic else w * traffic.stray for i, w in enumerate(weights)]
        # The largest of these are a draw without putting back.
        drawn = sorted(range(traffic.corpus), key=lambda i: rng.random() ** (1 / chances[i]), reverse=True)
        documents = drawn[: traffic.documents]
        rng.shuffle(documents)
        yield Arrival(at, tuple(documents))


def wanted(traffic: Traffic, arrival: Arrival, number: int) -> Wanted:
    """A request as the router reads it. number: of the request, which makes its question its own."""
    size = traffic.document_tokens
    keys = [key_of("document", str(document)) for document in arrival.documents]
    documents = tuple(Part(key, at * size, size) for at, key in enumerate(keys))
    blocks, before = [], b""
    for part in documents:
        before = key_of(before, part.key)
        blocks.append(Part(before, part.start, size))
    blocks.append(Part(key_of(before, str(number)), len(documents) * size, traffic.text_tokens))
    return Wanted((Prompt(documents, tuple(blocks), traffic.prompt_tokens),), traffic.answer_tokens)
