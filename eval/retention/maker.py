# SPDX-License-Identifier: Apache-2.0
"""What made-up traces are drawn from: blocks that are new, documents, and how popular they are."""

from __future__ import annotations

import random
from itertools import accumulate, count

_DOCUMENT = (1, 2, 4, 4, 8)  # blocks of a document, equally likely


class Maker:
    """Draws requests; equal seeds make equal traces."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._names = count()

    def new(self, blocks: int) -> list[int]:
        """Blocks that nobody has seen."""
        return [next(self._names) for _ in range(blocks)]

    def documents(self, number: int) -> list[list[int]]:
        """Documents of a few blocks each."""
        return [self.new(self.rng.choice(_DOCUMENT)) for _ in range(number)]


def zipf(number: int, exponent: float) -> list[float]:
    """Cumulative weights of ranks: the i-th is drawn i ** -exponent times as often as the first."""
    return list(accumulate((rank + 1) ** -exponent for rank in range(number)))
