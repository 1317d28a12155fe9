# SPDX-License-Identifier: Apache-2.0
"""Which of many things is evicted next, found without looking at all of them each time.

Things lie in a heap, ordered by rank, that knows where each of them is. So one whose rank rose can be moved at once,
and finding the next one takes a few steps, however many there are. A caller need not tell of each rise: that a rank
rose is also noticed when the thing comes to the top.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Victims(Generic[T]):
    """Things in the order in which they go.

    rank: the place of a thing; what compares smaller goes first. Things of equal rank go as they were offered. A rank
        that fell is noticed when the thing is offered again, or when its old turn comes.
    eligible: whether a thing may go. One that may not is dropped when its turn comes, and has to be offered again.
    """

    def __init__(self, rank: Callable[[T], Any], eligible: Callable[[T], bool]) -> None:
        self._rank = rank
        self._eligible = eligible
        self._heap: list[tuple[tuple[Any, int], T]] = []
        self._places: dict[T, int] = {}
        self._number = 0

    def offer(self, thing: T) -> None:
        """Say that a thing may go, or that its rank is another now."""
        place = self._places.get(thing)
        if place is None:
            place = len(self._heap)
            # The number decides between equal ranks: things themselves have no order.
            self._number += 1
            entry = (self._rank(thing), self._number), thing
            self._heap.append(entry)
        else:
            entry = (self._rank(thing), self._heap[place][0][1]), thing
        self._settle(place, entry)

    def take(self) -> T | None:
        """The thing that goes next, which is not here any more; None if no thing may go."""
        while self._heap:
            (known, number), thing = self._heap[0]
            if self._eligible(thing):
                rank = self._rank(thing)
                if rank != known:
                    self._sink(0, ((rank, number), thing))
                    continue
                self._drop_first()
                return thing
            self._drop_first()
        return None

    def first(self, count: int, looks: int) -> list[T]:
        """The things that `take` would return next, in order; all stay.

        count: how many at most.
        looks: things to look at, at most, before fewer are returned.
        """
        found: list[T] = []
        # What is known of a thing's rank is a lower bound of it: with the true one it is put back once.
        open_places: list[tuple[Any, int, bool]] = [(self._heap[0][0], 0, False)] if self._heap else []
        while open_places and looks and len(found) < count:
            known, place, is_true = heapq.heappop(open_places)
            thing = self._heap[place][1]
            if is_true:
                found.append(thing)
                continue
            looks -= 1
            for below in (2 * place + 1, 2 * place + 2):
                if below < len(self._heap):
                    heapq.heappush(open_places, (self._heap[below][0], below, False))
            if self._eligible(thing):
                heapq.heappush(open_places, ((self._rank(thing), known[1]), place, True))
        return found

    def clear(self) -> None:
        """Forget all things."""
        self._heap.clear()
        self._places.clear()

    def __len__(self) -> int:
        return len(self._heap)

    def _drop_first(self) -> None:
        del self._places[self._heap[0][1]]
        last = self._heap.pop()
        if self._heap:
            self._sink(0, last)

    def _settle(self, place: int, entry: tuple[tuple[Any, int], T]) -> None:
        """Put an entry where it belongs: above `place`, there, or below."""
        heap, places = self._heap, self._places
        while place and entry[0] < heap[above := (place - 1) >> 1][0]:
            heap[place] = heap[above]
            places[heap[place][1]] = place
            place = above
        self._sink(place, entry)

    def _sink(self, place: int, entry: tuple[tuple[Any, int], T]) -> None:
        """Put an entry at `place` or below."""
        heap, places, size = self._heap, self._places, len(self._heap)
        while (below := 2 * place + 1) < size:
            if below + 1 < size and heap[below + 1][0] < heap[below][0]:
                below += 1
            if entry[0] <= heap[below][0]:
                break
            heap[place] = heap[below]
            places[heap[place][1]] = place
            place = below
        heap[place] = entry
        places[entry[1]] = place
