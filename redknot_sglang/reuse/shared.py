# SPDX-License-Identifier: Apache-2.0
"""Segments that several running requests were made of stay in the tree.

A request needs its segments only until it has relocated them. Where memory is full, each admission would then evict what
the next one is made of, and computing that again takes longer than waiting for a running request to end: past
saturation the server would do little else. Segments of one request alone go as ever, since locking them would let fewer
requests run. Text between segments that `blend` needs to choose rows counts as a segment here. Of shared ones each lock
holds one copy beside two or more that run, so that locks take half as many global slots as running requests at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from redknot_sglang.plan.identity import Identity
from redknot_sglang.plan.request import state_of


class Locked(Protocol):
    """A path of the tree with a lock on it."""

    @property
    def identity(self) -> Identity: ...


class SharedSegments:
    """Locks on what at least two running requests have relocated.

    unlock: gives up the lock of a path. touch: makes a path the one that was used last: it was in use until now, and without
    a lock it would go before the answers that just ended, which few go on from.
    Locks depend on running requests alone: where nothing runs there are none, so nobody waits for them for ever.
    """

    def __init__(self, unlock: Callable[[Any], object], touch: Callable[[Identity], object]) -> None:
        self._unlock, self._touch = unlock, touch
        self._users: Counter[Identity] = Counter()
        self._locks: dict[Identity, Locked] = {}

    def used(self, req: Any, path: Locked) -> None:
        """A running request has relocated a path and needs its lock no longer; the lock is taken over or given up."""
        # A dict for its order: what is touched when decides what is evicted, and all ranks must decide alike.
        mine = state_of(req).used
        if path.identity not in mine:
            mine[path.identity] = None
            self._users[path.identity] += 1
        if self._users[path.identity] > 1 and path.identity not in self._locks:
            self._locks[path.identity] = path
        else:
            self._unlock(path)

    def ended(self, req: Any, touch_all: bool = False) -> None:
        """A request runs no longer. touch_all: make all that it used the last used, not only what had a lock."""
        state = state_of(req)
        used, state.used = state.used, {}
        for identity in used:
            self._users[identity] -= 1
            lock = self._locks.pop(identity, None) if self._users[identity] < 2 else None
            if lock is not None or (touch_all and identity not in self._locks):
                self._touch(identity)
            if lock is not None:
                self._unlock(lock)
            if not self._users[identity]:
                del self._users[identity]

    def release(self) -> None:
        """Give up all locks: a running request needs room more than others need these segments."""
        while self._locks:
            self._unlock(self._locks.popitem()[1])
