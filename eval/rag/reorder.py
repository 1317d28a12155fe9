# SPDX-License-Identifier: Apache-2.0
"""Documents of prompts in orders that earlier prompts began with: what a client of a server with a prefix cache can do itself.

The idea is known, for example from ContextPilot (arXiv 2511.03475) and CacheWeaver (arXiv 2606.19667): the order of retrieved
documents is the client's choice, so prompts that have documents in common can be made to begin with them, and what they begin with is
in the server's prefix cache. It costs the server nothing and changes the prompts: a document that the retriever ranked last may come
first.

This client knows all requests beforehand, which favours it: documents are ranked by how many prompts they come in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from eval.rag.traffic import Dialogue

REORDERED = "stock, reordered"


@dataclass
class _Node:
    """Documents that have followed a beginning of prompts, each with what has followed it in turn."""

    children: dict[int, _Node] = field(default_factory=dict)

    def longest(self, documents: frozenset[int]) -> list[int]:
        """The longest run from here that is made of these documents; of equal ones the first that was asked."""
        found: list[int] = []
        for document, child in self.children.items():
            if document in documents:
                rest = child.longest(documents - {document})
                if len(rest) >= len(found):
                    found = [document, *rest]
        return found

    def add(self, order: Sequence[int]) -> None:
        """A prompt with documents in this order has been asked."""
        node = self
        for document in order:
            node = node.children.setdefault(document, _Node())


def reordered(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """The same dialogues with the documents of their first turns in other orders.

    Each first turn begins with the longest beginning of an earlier one that it has the documents for; the others follow, those of most
    prompts first. Later turns come behind a dialogue's own question and answer, which no other prompt has: their order stays.
    """
    prompts = Counter(document for dialogue in dialogues for document in set(dialogue[0].documents))
    asked, found = _Node(), list[Dialogue]()
    for dialogue in dialogues:
        first = dialogue[0]
        shared = asked.longest(frozenset(first.documents))
        # One that comes twice in a turn stays so.
        rest = list(first.documents)
        for document in shared:
            rest.remove(document)
        order = shared + sorted(rest, key=lambda document: (-prompts[document], document))
        asked.add(order)
        found.append([replace(first, documents=order), *dialogue[1:]])
    return found
