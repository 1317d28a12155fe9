# SPDX-License-Identifier: Apache-2.0
"""Which cached KV is kept under `--radix-eviction-policy redknot`: the arithmetic alone, without a tree and without
SGLang.

The cache has a counter for each piece of KV in each head class, and says whenever a piece was used. A piece's *rank*
says how much it is worth: its uses (recent ones count more) times what it costs to compute it again, divided by the
room that it takes. The piece of the lowest rank is evicted first.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from redknot_sglang.radix.own_paths import OwnPaths
from redknot_sglang.radix.trials import Block, Trials
from redknot_sglang.radix.uses import FRACTION, Clock, Rank, Uses, rank

_UNIT = 1 << 10  # worth of a token that costs what the first one does
_BLOCKS = 2048  # blocks that a cache is seen as, roughly
_SMALLEST, _LARGEST = 16, 512


def block_size(capacity: int) -> int:
    """Tokens of a block, for a cache of `capacity` tokens: a power of two."""
    size = _SMALLEST
    while size < _LARGEST and size * 2 * _BLOCKS <= capacity:
        size *= 2
    return size


def blocks_of(tokens: Sequence[int], namespace: str, size: int) -> list[Block]:
    """The names of a path's blocks, equal for equal beginnings in the same namespace.

    tokens: of the path, each in 64 bits.
    namespace: of the tree.
    size: tokens of a block; the last may have fewer.
    """
    name, found = blake2b(namespace.encode(), digest_size=8).digest(), []
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        name = blake2b(name + array("q", part).tobytes(), digest_size=8).digest()
        found.append((int.from_bytes(name, "little"), len(part)))
    return found


class Retention:
    """Counters and their ranks.

    capacity: tokens that the cache holds, at least 1.
    cost: of computing one token at a position, which the text before it makes dearer; any unit, whole numbers from 1
        on.
    """

    def __init__(self, capacity: int, cost: Callable[[int], int]) -> None:
        self.capacity = capacity
        self._cost = cost
        self._first = cost(0)
        self.trials = Trials(capacity, self._worth)
        self.clock = Clock(self.trials.best.clock.half_life)
        self._own = OwnPaths()

    def resize(self, capacity: int) -> None:
        """Say how many tokens the cache holds now. A change of less than an eighth makes no difference."""
        if abs(capacity - self.capacity) * 8 >= self.capacity:
            self.capacity = max(1, capacity)
            self.trials.resize(self.capacity)

    def admit(self, path: Sequence[Block], found: int | None = None) -> int | None:
        """A request comes, or uses a segment; its uses are counted next.

        path: its blocks from the first on, also those that are not cached.
        found: of a segmented request's own path, the tokens from which it went on; None for any other path.
        Returns the position up to which it counts as a use of its path; None for all of it.
        """
        counted = found
        if found is not None:
            self._own.admit([(self.trials.best.visits(name), tokens) for name, tokens in path], self.capacity)
            if self._own.count:
                counted = None
        self.trials.admit(path, counted)
        half_life = self.trials.best.clock.half_life
        if half_life != self.clock.half_life:
            self.clock.pace(half_life)
        self.clock.advance(sum(tokens for _, tokens in path))
        return counted

    def known(self, name: int) -> int:
        """What is remembered of a block's uses, for `started`; also after it was evicted. 0 if it was never seen."""
        return self.trials.best.count(name)

    def started(self, known: int = 0) -> Uses:
        """A counter for a new piece. known: what is remembered of it."""
        return self.clock.started(known)

    def use(self, counters: Iterable[tuple[Uses, bool]]) -> None:
        """Note a use of pieces, the last of a path first: of pieces with equal counts those go first.

        counters: of the pieces, each with whether the use counts.
        """
        for uses, counts in counters:
            (self.clock.add if counts else self.clock.touch)(uses)

    def is_over(self, uses: Uses) -> bool:
        """Whether a piece's lifetime is over: its uses, decayed, count less than half a new one.

        A use lasts one half-life to two, and each time that there are twice as many one more.
        """
        return 2 * self.clock.decayed(uses) < 1 << FRACTION

    def global_rank(self, passed: Uses, start: int) -> Rank:
        """The place of a piece in the global class, which every request needs that passes through it.

        passed: its counter of requests that did.
        start: position of its first token: what is evicted is computed again from there.
        """
        return rank(passed, self._worth(start))

    def local_rank(self, ended: Uses, start: int, tokens: int, gap: int) -> Rank:
        """The place of a piece in the local class, which only those need that go on from where it ends.

        ended: its counter of requests that did.
        start: position of its first token.
        tokens: that it has.
        gap: tokens before it that are computed again with it, since requests could only go on from before them.
        """
        return rank(ended, self._worth(start) * (tokens + gap) // tokens)

    def _worth(self, position: int) -> int:
        return self._cost(position) * _UNIT // self._first
