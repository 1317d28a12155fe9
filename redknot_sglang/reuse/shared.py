# SPDX-License-Identifier: Apache-2.0
"""Segments (documents) that several running requests have used stay locked in the prefix tree.

A request needs a segment in the tree only until it has copied (*relocated*) it to its own slots. If segments were
unlocked then, each admission under full memory would evict what the next request needs. Computing that again takes
longer than waiting for a running request to end, and past saturation the server would do little else. So a segment
stays locked while at least two running requests have used it. One that a single request has used is unlocked: locking
those as well would let fewer requests run. A locked segment has at least two copies in running requests, so locks take
at most half as many global slots as running requests.

Text between segments, which `blend` needs for choosing rows, counts as a segment here.
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
    """The locks on segments that at least two running requests have relocated.

    unlock: gives up the lock of a path.
    touch: marks a path as the most recently used one. A path whose lock is given up was in use until now. Without the
        mark it would be evicted before answers that just ended, although few requests continue those.
    Locks depend on running requests alone. Where nothing runs there are none, so nobody waits for one for ever.
    """

    def __init__(self, unlock: Callable[[Any], object], touch: Callable[[Identity], object]) -> None:
        self._unlock, self._touch = unlock, touch
        self._users: Counter[Identity] = Counter()
        self._locks: dict[Identity, Locked] = {}

    def used(self, req: Any, path: Locked) -> None:
        """A running request has relocated a path and needs its lock no longer. The lock is kept here, or given up.

        req: SGLang's Req.
        path: the path, locked.
        """
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
        """A request runs no longer: locks on what fewer than two others have used are given up.

        touch_all: mark all paths that it used as recently used, not only those whose lock is given up.
        """
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
        """Give up all locks. A running request that has no room needs it more than others need these segments."""
        while self._locks:
            self._unlock(self._locks.popitem()[1])
