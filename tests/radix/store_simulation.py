# SPDX-License-Identifier: Apache-2.0
"""The scheduler in miniature with a host tier and a store behind it, whose threads do a step when the test says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redknot_sglang.plan.identity import WHOLE
from redknot_sglang.store.jobs import Fetching
from redknot_sglang.store.objects import Reach
from redknot_sglang.store.rows import HostRows
from redknot_sglang.store.store import Patience, Store
from tests.radix.calls import SimulatedRequest
from tests.radix.host_simulation import CLASSES, HostSimulation
from tests.store.memory import MemoryStore

CONTEXT = bytes(range(32))
THRESHOLD = 4


class StoredSimulation(HostSimulation):
    """As a HostSimulation, over a store that others may share. context: of what the server serves."""

    def __init__(self, objects: MemoryStore, *args: Any, context: bytes = CONTEXT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patience = Patience(base=1000.0, threshold=THRESHOLD)
        reach = Reach(*self.tree.local_reach)
        self.store = self.tree.store = Store("memory", objects, context, HostRows(self.host), reach, patience)
        self.objects = objects

    def admit(self, prompt: Sequence[int], extra_key: str | None = None, whole: bool = False) -> SimulatedRequest:
        """As ever; whole paths have the namespace that the server gives them."""
        return super().admit(prompt, (extra_key or "") + WHOLE if whole else extra_key, whole)

    def fetch(self, prompt: Sequence[int], extra_key: str | None = None, whole: bool = False) -> Fetching | None:
        """Ask the store for a prompt's path, without waiting."""
        return self.tree.fetch(prompt, (extra_key or "") + WHOLE if whole else extra_key)

    def bring(self, prompt: Sequence[int], extra_key: str | None = None, whole: bool = False) -> int:
        """Have a prompt's path brought from the store; returns how many of its tokens came."""
        job = self.fetch(prompt, extra_key, whole)
        self.work()
        assert job is None or job.is_settled
        return 0 if job is None else job.loaded

    def flush(self) -> None:
        """As SGLang, whose server is idle then."""
        assert not self.running
        self.tree.reset()
        self.allocator.clear()

    def work(self) -> None:
        """All that waits for the store, or for the tree, is done."""
        self.forward_begins()
        self.notice()
        while self.write() or self.read():
            self.notice()
        self.notice()
        assert not self.store.saving and not self.store.fetching

    def write(self) -> bool:
        """One path is written; whether there was one."""
        waits = not self.store._saves.empty()
        if waits:
            self.store.write_next()
        return waits

    def read(self) -> bool:
        """One step of one path that is read; whether there was one."""
        waits = not self.store._fetches.empty()
        if waits:
            self.store.read_next()
        return waits

    def held_elsewhere(self) -> tuple[list[int], list[int]]:
        """Slots of paths that are being read."""
        held: tuple[list[int], list[int]] = [], []
        for job in self.store.fetching:
            for kind in range(len(CLASSES)):
                held[kind].extend(job.slots[kind][job.slots[kind] >= 0].tolist() if job.slots else [])
        return held
