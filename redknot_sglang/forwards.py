# SPDX-License-Identifier: Apache-2.0
"""How the prefill forwards of a server ran: by one graph, by SGLang's graph that breaks at every attention, or without a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

# A replay may have at most this many rows for each row of the batch, else SGLang takes no graph.
_MOST_PADDING = 2


class PrefillForwards:
    """Counts since the start, forwards by which SGLang warms up or captures graphs left out.

    sizes: rows of the prefill graphs that the server has captured; none if prefill graphs are off.
    """

    def __init__(self) -> None:
        self.sizes: Sequence[int] = ()
        self._whole = 0
        self._choosing = 0
        self._broken: Counter[str] = Counter()
        self._eager: Counter[str] = Counter()
        self._begun = False

    def begin(self, choosing: bool = False) -> None:
        """A batch of requests is about to be prefilled; what runs next is its forward.

        choosing: whether it ends at the deepest retrieval head.
        """
        self._begun = True
        self._choosing += choosing

    def by_whole_graph(self) -> None:
        """It is replayed as one graph, which holds the attention."""
        self._whole += self._taken()

    def by_broken_graph(self, why: str) -> None:
        """It is replayed by SGLang's graph, which leaves attention to Python.

        why: `adapters_or_path`: there are no graphs with attention, since the server has adapters or an attention path that cannot
            be captured; `rows`: more rows than such graphs are made for; `runs`: more requests, runs of rows or tokens of
            context than their buffers hold.
        """
        self._broken[why] += self._taken()

    def eagerly(self, rows: int, choosing: bool = False) -> None:
        """Python launches every kernel of it.

        rows: of the batch.
        choosing: whether it ends at the deepest retrieval head.
        """
        if not self._begun:
            return
        if choosing and self.sizes:
            self._eager["choosing"] += self._taken()
            return
        fitting = [size for size in self.sizes if rows <= size <= _MOST_PADDING * rows]
        self._eager["other" if fitting else "size" if self.sizes else "disabled"] += self._taken()

    def status(self) -> dict[str, Any]:
        """Counts as JSON types. Reasons of `broken_graph` are those of `by_broken_graph`; of `eager`: `disabled`, the server
        captures no prefill graphs; `size`, none of at least the batch's rows and at most twice as many; `other`, SGLang does not
        replay such a batch; `choosing`, it ends at the deepest retrieval head, and no graph that does so can serve it. `choosing`
        beside them counts all that end there, however they ran.
        """
        kinds = {"broken_graph": self._broken, "eager": self._eager}
        found = {kind: {why: count for why, count in sorted(whys.items()) if count} for kind, whys in kinds.items()}
        return {"whole_graph": self._whole, **found, "choosing": self._choosing}

    def _taken(self) -> int:
        begun, self._begun = self._begun, False
        return int(begun)
