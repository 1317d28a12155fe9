# SPDX-License-Identifier: Apache-2.0
"""Whether the paths that segmented requests leave behind are worth keeping, for the eviction policy `redknot`.

The *own path* of a segmented request is made of documents that are cached by themselves, for every request that has
them. It can only be reused by a prompt of the very same beginning: by the next turn of the same conversation, if there is
one. Where no conversations go on, own paths are as large as all documents of all requests together, and nothing of them is
ever needed. So a new own path does not count as used, and goes first, unless traffic shows that such paths are gone on from.
"""

from __future__ import annotations

from collections.abc import Iterable

_SHARE = 8  # own paths count if one token in so many comes a second time
_MEMORY = 16  # capacities of traffic after which what was seen counts half


class OwnPaths:
    """How many tokens of own paths have come once, and how many a second time.

    count: whether a new own path counts as used. It does not before as many tokens have come as the cache holds.
    """

    def __init__(self) -> None:
        self.count = False
        self._first = self._second = 0

    def admit(self, path: Iterable[tuple[int, int]], capacity: int) -> None:
        """A segmented request comes.

        path: of the blocks of its own path, how many requests had each before, and its tokens.
        capacity: tokens that the cache holds.
        """
        for before, tokens in path:
            self._first += tokens * (before == 0)
            # What comes a third time says no more: every prompt may begin with the same text.
            self._second += tokens * (before == 1)
        self.count = self._first >= capacity and self._second * _SHARE >= self._first
        if self._first > _MEMORY * capacity:
            self._first, self._second = self._first // 2, self._second // 2
