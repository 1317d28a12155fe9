# SPDX-License-Identifier: Apache-2.0
"""Finding the best half-life for the eviction policy `redknot`, by simulated caches that see the same requests.

The policy counts how often something was used, and after one *half-life* a use counts half. Which half-life is best
depends on the traffic. Conversations want a short one, which is nearly the order of last use (LRU). Popular documents
want a long one, which is nearly the order of counts (LFU). When other documents become popular, something between is
best. A *trial* simulates the cache under one half-life. It holds no KV, only the names of blocks (runs of tokens) and
their counters, also of blocks that it has evicted (*ghosts*). The half-life of the trial that does best is used.
One trial has so short a half-life that it is LRU, so the policy is worse than LRU only for as long as it takes to
notice.

The counters of a trial have a second use: a block that comes back after it was evicted is known from before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redknot_sglang.radix.uses import Clock, Rank, Uses, rank
from redknot_sglang.radix.victims import Victims

# A half-life is so many capacities of the cache (numerator, denominator). Measured with eval/bench_retention.py.
HALF_LIVES = ((1, 64), (1, 1), (4, 1), (16, 1))
_GHOSTS = 3  # blocks that are remembered after they went, in capacities
_MEMORY = 16  # capacities of traffic over which hits are compared
_STEPS = 16  # comparisons in that time
_MARGIN = 32  # another half-life must be better by one part in so many

# The name of some tokens together with all before them, and how many tokens they are.
Block = tuple[int, int]


class _Entry:
    __slots__ = ("here", "name", "tokens", "uses", "visits", "worth")

    def __init__(self, name: int, tokens: int, worth: int, epoch: int) -> None:
        self.name, self.tokens, self.worth = name, tokens, worth
        self.uses = Uses(0, epoch)
        self.here = False
        self.visits = 0


class Trial:
    """The blocks that would be cached under one half-life.

    half_life: in capacities, numerator and denominator.
    capacity: tokens that the cache holds.
    worth: of a token at a position, as in `rank`.
    """

    def __init__(self, half_life: tuple[int, int], capacity: int, worth: Callable[[int], int]) -> None:
        self._half_life = half_life
        self._worth = worth
        self._entries: dict[int, _Entry] = {}
        self._ghosts: dict[int, _Entry] = {}
        self._ghost_tokens = 0
        self._victims: Victims[_Entry] = Victims(_rank, _is_here)
        self.held = 0
        self.capacity = capacity
        self.clock = Clock(self._tokens())
        self.score = 0

    def resize(self, capacity: int) -> None:
        """The cache holds another number of tokens from now on."""
        self.capacity = capacity
        self.clock.pace(self._tokens())

    def count(self, name: int) -> int:
        """Uses of a block, decayed to now, in units of 2 ** -FRACTION."""
        entry = self._entries.get(name)
        return 0 if entry is None else self.clock.decayed(entry.uses)

    def visits(self, name: int) -> int:
        """Requests that had a block, as far back as it is remembered."""
        entry = self._entries.get(name)
        return 0 if entry is None else entry.visits

    def admit(self, path: Sequence[Block], counted: int | None = None) -> int:
        """A request comes.

        path: its blocks from the first on.
        counted: position up to which it is a use of them; None for all of it.
        Returns how many of its tokens would have been in the cache.
        """
        hits = self._hits(path)
        self.clock.advance(sum(tokens for _, tokens in path))
        before = self.clock.uses
        starts, at = [], 0
        for _, tokens in path:
            starts.append(at)
            at += tokens
        # From the last to the first: of blocks with equal counts the deeper one is to go first.
        for (name, tokens), start in zip(reversed(path), reversed(starts), strict=True):
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = _Entry(name, tokens, self._worth(start), self.clock.epoch)
            entry.visits += 1
            if counted is None or start < counted:
                self.clock.add(entry.uses)
            else:
                self.clock.touch(entry.uses)
            if not entry.here:
                self._put(entry)
        self._shrink(before)
        return hits

    def _hits(self, path: Sequence[Block]) -> int:
        hits = 0
        for name, tokens in path:
            entry = self._entries.get(name)
            if entry is None or not entry.here:
                break
            hits += tokens
        return hits

    def _put(self, entry: _Entry) -> None:
        if self._ghosts.pop(entry.name, None) is not None:
            self._ghost_tokens -= entry.tokens
        entry.here = True
        self.held += entry.tokens
        self._victims.offer(entry)

    def _shrink(self, before: int) -> None:
        """Let blocks go until the rest fits. before: number of the last use that was not this request's."""
        aside = []
        while self.held > self.capacity and (entry := self._victims.take()) is not None:
            if entry.uses.last > before:
                aside.append(entry)
                continue
            entry.here = False
            self.held -= entry.tokens
            self._ghosts[entry.name] = entry
            self._ghost_tokens += entry.tokens
        for entry in aside:
            self._victims.offer(entry)
        while self._ghost_tokens > _GHOSTS * self.capacity:
            name = next(iter(self._ghosts))
            self._ghost_tokens -= self._ghosts.pop(name).tokens
            del self._entries[name]

    def _tokens(self) -> int:
        numerator, denominator = self._half_life
        return max(1, self.capacity * numerator // denominator)


def _rank(entry: _Entry) -> Rank:
    return rank(entry.uses, entry.worth)


def _is_here(entry: _Entry) -> bool:
    return entry.here


class Trials:
    """One trial for each half-life, and which of them is best.

    capacity: tokens that the cache holds.
    worth: of a token at a position, as in `rank`.
    """

    def __init__(self, capacity: int, worth: Callable[[int], int]) -> None:
        self.trials = [Trial(half_life, capacity, worth) for half_life in HALF_LIVES]
        self.best = self.trials[0]
        self._since = 0

    def resize(self, capacity: int) -> None:
        """The cache holds another number of tokens from now on."""
        for trial in self.trials:
            trial.resize(capacity)

    def admit(self, path: Sequence[Block], counted: int | None = None) -> None:
        """A request comes, with these blocks from the first on. counted: as for `Trial.admit`."""
        for trial in self.trials:
            trial.score += trial.admit(path, counted)
        self._since += sum(tokens for _, tokens in path)
        if self._since * _STEPS >= _MEMORY * self.best.capacity:
            self._since = 0
            self._compare()

    def _compare(self) -> None:
        # Of equals the first, which is the shortest half-life.
        best = max(self.trials, key=lambda trial: trial.score)
        if best.score * _MARGIN > self.best.score * (_MARGIN + 1):
            self.best = best
        for trial in self.trials:
            trial.score -= trial.score // _STEPS
