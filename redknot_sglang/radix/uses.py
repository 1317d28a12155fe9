# SPDX-License-Identifier: Apache-2.0
"""How often something in the cache was used, recent uses counting most: counters that decay on a logical clock, in
whole numbers.

A use counts half as much after one *half-life*, which is a number of tokens that requests have brought since. No wall
clock and no floating point: all tensor-parallel ranks see the same requests in the same order, so they come to the same
counts.

Time is cut into *epochs* of one half-life. Within an epoch the weight of a new use grows evenly from 1 to 2, and where
an epoch ends all counts halve. So nothing has to be done to a counter as time goes by, and two counters that nobody
touches keep their order for ever: what is to be evicted first can be kept in a heap.
"""

from __future__ import annotations

from dataclasses import dataclass

FRACTION = 20  # bits behind the point of a count: a use is forgotten after 20 half-lives
_DIGITS = 96  # bits of a value that a rank compares

# What is smaller goes first: size of the value, and then the longest unused.
Rank = tuple[int, int]


@dataclass(slots=True)
class Uses:
    """A counter.

    count: uses, decayed to `epoch`, in units of 2 ** -FRACTION.
    epoch: the epoch that `count` is for.
    last: number of the last use among all uses on its clock; 0 for none.
    """

    count: int = 0
    epoch: int = 0
    last: int = 0

    def copy(self) -> Uses:
        """The same for another part of what was used."""
        return Uses(self.count, self.epoch, self.last)


class Clock:
    """The time of some counters.

    half_life: tokens after which a use counts half, at least 1.
    """

    def __init__(self, half_life: int) -> None:
        self.half_life = half_life
        self.epoch = 0
        self.uses = 0
        self._since = 0  # tokens since the epoch began

    def advance(self, tokens: int) -> None:
        """A request has brought so many tokens."""
        epochs, self._since = divmod(self._since + tokens, self.half_life)
        self.epoch += epochs

    def pace(self, half_life: int) -> None:
        """Give all counters another half-life from now on; what they have counted stays."""
        self._since = self._since * half_life // self.half_life
        self.half_life = half_life

    def weight(self) -> int:
        """What a use counts now, in units of 2 ** -FRACTION of the epoch's first."""
        return (1 << FRACTION) + (self._since << FRACTION) // self.half_life

    def decayed(self, uses: Uses) -> int:
        """A counter's count at this epoch, rounded down."""
        return uses.count >> (self.epoch - uses.epoch)

    def add(self, uses: Uses) -> None:
        """Count a use, later than all before."""
        self.uses += 1
        uses.count = self.decayed(uses) + self.weight()
        uses.epoch, uses.last = self.epoch, self.uses

    def touch(self, uses: Uses) -> None:
        """Note, later than all uses before, that something was needed, without counting it as a use."""
        self.uses += 1
        uses.last = self.uses

    def started(self, count: int) -> Uses:
        """A new counter.

        count: what is known of earlier uses, decayed to now, in units of 2 ** -FRACTION.
        """
        self.uses += 1
        return Uses(count, self.epoch, self.uses)


def rank(uses: Uses, worth: int) -> Rank:
    """The place of a counter among others of the same clock; it only rises as uses are counted. What was never used goes first.

    uses: the counter.
    worth: what a use saves for what it takes to keep: any unit, at least 1, the same for all that are compared.
    """
    value = uses.count * worth
    if not value:
        return 0, uses.last
    bits = value.bit_length()
    # The value times two to the power of its epoch, written as exponent and digits: epochs become too many to multiply.
    return ((uses.epoch + bits) << _DIGITS) + ((value << _DIGITS) >> bits), uses.last
