# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side of the storage tier: bounded, and never waiting, whatever the store does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from redknot_sglang.store.backends import Found, Items
from redknot_sglang.store.jobs import Fetching, Saving, Stage
from redknot_sglang.store.objects import Reach
from redknot_sglang.store.rows import HostRows
from redknot_sglang.store.store import Patience, Store
from tests.store.memory import MemoryStore


class Slots:
    """Host memory of a class: 8 bytes of each of some slots."""

    size_per_token = 8

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows = torch.arange(size * 8, dtype=torch.uint8).view(size, 8)

    def pack(self, slots: torch.Tensor, data: torch.Tensor) -> None:
        data.copy_(self.rows[slots].flatten())

    def unpack(self, slots: torch.Tensor, data: torch.Tensor, which: torch.Tensor) -> None:
        self.rows[slots] = data.view(-1, 8)[which]


class HangingStore(MemoryStore):
    """Answers when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def exist(self, names: Sequence[str]) -> list[bool]:
        self.goes_on.wait(60)
        return super().exist(names)

    def get(self, items: Items) -> list[Found]:
        self.goes_on.wait(60)
        return super().get(items)


def make_store(objects: MemoryStore, base: float = 1000.0, namespace: Callable[[str], str | None] = str) -> Store:
    rows = HostRows([Slots(1000), Slots(1000)])
    return Store("memory", objects, bytes(32), rows, Reach(8, 2), Patience(base=base, threshold=1), namespace)


def saving(first: int = 0, count: int = 100) -> Saving:
    slots = torch.arange(count)
    return Saving(np.arange(first, first + count), "tenant", False, (slots, slots), ends=(count,))


def wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def test_a_path_that_is_written_is_found_by_the_threads_of_another() -> None:
    objects = MemoryStore()
    one, two = make_store(objects), make_store(objects)
    for store in (one, two):
        store.start()
    assert one.room()
    one.save(saving(count=200))
    wait_for(lambda: bool(one.picked_up()))
    # A block, an end and its mark.
    assert not one.saving and len(objects.objects) == 3
    job = two.fetch(np.arange(200), "tenant", False, 0)
    assert job is not None
    wait_for(lambda: two.picked_up() == [job])
    assert job.stage is Stage.FOUND and job.end == 200
    target = torch.arange(500, 700)
    before = two.rows.pools[0].rows[:200].clone()  # type: ignore[attr-defined]
    two.rows.pools[0].rows[500:700] = 0  # type: ignore[attr-defined]
    job.slots = target, target
    two.read(job)
    wait_for(lambda: two.picked_up() == [job])
    assert job.stage is Stage.READ
    assert torch.equal(two.rows.pools[0].rows[500:700], before)


def test_a_store_that_hangs_keeps_nobody() -> None:
    objects = HangingStore()
    store = make_store(objects, base=0.0)
    store.start()
    begin = time.monotonic()
    store.save(saving())
    jobs = [store.fetch(np.arange(at, at + 50), "tenant", False, 0) for at in range(0, 1000, 10)]
    assert sum(job is not None for job in jobs) == 64, "more are not asked for at a time"
    time.sleep(0.05)
    late = store.late()
    assert len(late) == 64
    for job in late:
        store.withdraw(job)
    assert store.late() == [] and store.state == "failing"
    assert store.fetch(np.arange(50), "tenant", False, 0) is None
    taken_back = next(iter(store.saving))
    store.withdraw(taken_back)
    assert time.monotonic() - begin < 10
    objects.goes_on.set()
    wait_for(lambda: store._fetches.empty() and store._saves.empty())
    time.sleep(0.1)
    assert store.picked_up() == [] and not objects.objects


def test_what_is_locked_for_it_is_a_quarter_of_the_host_at_most() -> None:
    store = make_store(MemoryStore())
    taken = 0
    while store.room():
        store.save(saving(first=taken * 1000))
        taken += 1
    assert taken == 3 and store.figures.skipped == 1


def test_a_namespace_that_has_no_name_elsewhere_is_neither_written_nor_read() -> None:
    objects = MemoryStore()
    store = make_store(objects, namespace=lambda namespace: None)
    store.save(saving())
    (job,) = store.picked_up()
    assert isinstance(job, Saving) and not store.saving and not objects.calls
    assert store.fetch(np.arange(100), "tenant", False, 0) is None


def test_an_unexpected_error_ends_no_thread() -> None:
    class Broken(MemoryStore):
        def exist(self, names: Sequence[str]) -> list[bool]:
            raise KeyError("a bug")

    store = make_store(Broken())
    store.start()
    for _ in range(2):
        store.reading.worked()
        job = store.fetch(np.arange(100), "tenant", False, 0)
        assert isinstance(job, Fetching)
        wait_for(lambda: bool(store.picked_up()))
        assert job.stage is Stage.FAILED
        store.settle(job)
    assert store.reading.failures == 2


def test_all_objects_go_in_the_background() -> None:
    objects = MemoryStore()
    store = make_store(objects)
    store.save(saving())
    store.write_next()
    assert objects.objects
    store.clear()
    store.write_next()
    assert not objects.objects
