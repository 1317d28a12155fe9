# SPDX-License-Identifier: Apache-2.0
"""Made-up traffic of segmented requests: documents that many share, at any place, in paths that are each request's own.

Each prompt begins with the same block, has four documents, and ends with a block of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eval.retention.maker import Maker, zipf

_DOCUMENTS = 4  # of a prompt
# A request: the blocks of its path, and of each document where it begins there, and its own blocks.
Made = tuple[list[int], list[tuple[int, list[int]]]]


class Prompts:
    """Prompts of documents out of 500.

    exponent: they are popular as 1 / rank ** exponent.
    """

    def __init__(self, seed: int, exponent: float) -> None:
        self.maker = Maker(seed)
        self.known = self.maker.documents(500)
        self._weights = zipf(len(self.known), exponent)
        self._lead = self.maker.new(1)
        self._names: dict[tuple[int, int], int] = {}

    def drift(self) -> None:
        """Other documents are popular from now on."""
        self.maker.rng.shuffle(self.known)

    def next(self) -> Made:
        """A prompt whose end nobody has seen."""
        rng, path, documents = self.maker.rng, list(self._lead), list[tuple[int, list[int]]]()
        chosen: dict[int, list[int]] = {}
        while len(chosen) < _DOCUMENTS:
            document = rng.choices(self.known, cum_weights=self._weights)[0]
            chosen[document[0]] = document
        order = list(chosen.values())
        rng.shuffle(order)
        for document in order:
            documents.append((len(path), document))
            for name in document:
                # In a path, a block's number stands for all before it too.
                above = path[-1], name
                if above not in self._names:
                    (self._names[above],) = self.maker.new(1)
                path.append(self._names[above])
        return path + self.maker.new(1), documents


def permuted_documents(seed: int, requests: int) -> Iterator[Made]:
    """Four documents in any order, popular as 1 / rank; no request goes on from another."""
    prompts = Prompts(seed, 1.0)
    for _ in range(requests):
        yield prompts.next()


def permuted_drifting(seed: int, requests: int) -> Iterator[Made]:
    """The same, popular as 1 / rank ** .8; every 500 requests others are."""
    prompts = Prompts(seed, 0.8)
    for number in range(requests):
        if number % 500 == 499:
            prompts.drift()
        yield prompts.next()


def _turns(prompts: Prompts, requests: int, alone: float) -> Iterator[Made]:
    """30 conversations at a time, of which a later one goes on more likely. alone: share of requests that are no part of one."""
    rng, live = prompts.maker.rng, list[Made]()
    for _ in range(requests):
        if rng.random() < alone:
            yield prompts.next()
            continue
        if len(live) < 30 or rng.random() < 0.2:
            made = prompts.next()
            if len(live) == 30:
                live.pop(rng.randrange(30))
        else:
            path, documents = live.pop(max(0, len(live) - 1 - int(rng.expovariate(4 / 30))))
            made = path + prompts.maker.new(rng.choice((1, 1, 2, 4))), documents
        live.append(made)
        yield made


def document_conversations(seed: int, requests: int) -> Iterator[Made]:
    """Conversations that begin with four documents each, and go on from the paths that they left."""
    return _turns(Prompts(seed, 1.0), requests, 0)


def documents_and_conversations(seed: int, requests: int) -> Iterator[Made]:
    """As many requests that stand alone as turns of such conversations."""
    return _turns(Prompts(seed, 1.0), requests, 0.5)


SEGMENTED: dict[str, Callable[[int, int], Iterator[Made]]] = {
    "permuted_documents": permuted_documents,
    "permuted_drifting": permuted_drifting,
    "document_conversations": document_conversations,
    "documents_and_conversations": documents_and_conversations,
}
