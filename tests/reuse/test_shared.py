# SPDX-License-Identifier: Apache-2.0
"""Locks on segments that several running requests share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.plan.identity import Identity
from redknot_sglang.plan.request import RequestState
from redknot_sglang.reuse.shared import SharedSegments


@dataclass(frozen=True, eq=False)
class Path:
    """A lock on the path of a name."""

    identity: Identity


class Locks:
    """Locks that are held, and paths in the order of their touches."""

    def __init__(self) -> None:
        self.held: list[Path] = []
        self.touched: list[bytes] = []
        self.touch_all = False
        self.locked: list[Identity] = []
        self.shared = SharedSegments(self.unlock, self.touch)

    def lock(self, name: int) -> Path:
        path = Path((None, bytes([name])))
        self.held.append(path)
        return path

    def unlock(self, path: Path) -> None:
        self.held.remove(path)

    def touch(self, identity: Identity) -> None:
        if identity in self.locked or not self.touch_all:
            assert identity in [path.identity for path in self.held], "what is touched too late may be gone"
        self.touched.append(identity[1])

    def ended(self, req: Any, touch_all: bool = False) -> None:
        self.touch_all, self.locked = touch_all, [path.identity for path in self.held]
        self.shared.ended(req, touch_all)

    @property
    def names(self) -> list[int]:
        return sorted(path.identity[1][0] for path in self.held)


def request() -> Any:
    return SimpleNamespace(redknot=RequestState())


def test_the_second_user_keeps_the_lock_until_one_ends() -> None:
    locks, (one, two) = Locks(), (request(), request())
    locks.shared.used(one, locks.lock(7))
    locks.shared.used(one, locks.lock(7))
    assert locks.names == [], "twice in one prompt is one user"
    locks.shared.used(two, locks.lock(7))
    locks.shared.used(two, locks.lock(8))
    assert locks.names == [7]
    locks.ended(one)
    assert locks.names == [] and locks.touched == [b"\x07"]
    locks.ended(one)
    locks.ended(two)
    assert locks.names == []


def test_paths_are_touched_in_the_order_in_which_they_were_used() -> None:
    """Ranks of tensor parallelism have different hashes of the same names."""
    locks, requests = Locks(), [request(), request()]
    order = [17, 3, 250, 99, 4, 131, 77]
    for req in requests:
        for name in order:
            locks.shared.used(req, locks.lock(name))
    locks.ended(requests[0])
    assert locks.touched == [bytes([name]) for name in order]


def test_where_others_wait_what_nobody_shares_is_touched_too() -> None:
    locks, (one, two) = Locks(), (request(), request())
    for name in (1, 2, 3):
        locks.shared.used(one, locks.lock(name))
    for name in (2, 4):
        locks.shared.used(two, locks.lock(name))
    locks.ended(one, touch_all=True)
    assert locks.touched == [b"\1", b"\2", b"\3"] and locks.names == []
    locks.ended(two)
    assert len(locks.touched) == 3


def test_what_others_still_share_stays_locked_and_needs_no_touch() -> None:
    locks, requests = Locks(), [request() for _ in range(3)]
    for req in requests:
        locks.shared.used(req, locks.lock(5))
    locks.ended(requests[0], touch_all=True)
    assert locks.names == [5] and locks.touched == []


def test_locks_that_were_given_up_come_back_with_the_next_user() -> None:
    locks, requests = Locks(), [request() for _ in range(3)]
    for req in requests[:2]:
        locks.shared.used(req, locks.lock(1))
    locks.shared.release()
    assert locks.names == [] and locks.touched == []
    locks.shared.used(requests[2], locks.lock(1))
    assert locks.names == [1]
    for req in requests:
        locks.ended(req)
    assert locks.names == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("used"), st.integers(0, 4), st.integers(0, 3)),
        st.tuples(st.just("ended"), st.integers(0, 4), st.integers(0, 1)),
        st.tuples(st.just("release"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_one_lock_at_most_for_each_shared_path_and_none_without_requests(steps: list[tuple[str, int, int]]) -> None:
    locks, requests = Locks(), [request() for _ in range(5)]
    users: list[set[int]] = [set() for _ in requests]
    for step, number, name in steps:
        if step == "used":
            locks.shared.used(requests[number], locks.lock(name))
            users[number].add(name)
        elif step == "ended":
            locks.ended(requests[number], touch_all=bool(name))
            users[number] = set()
        else:
            locks.shared.release()
        counts: Counter[Any] = Counter(name for names in users for name in names)
        assert len(set(locks.names)) == len(locks.names)
        assert set(locks.names) <= {name for name, count in counts.items() if count > 1}
    for req in requests:
        locks.ended(req)
    assert locks.held == []
