# SPDX-License-Identifier: Apache-2.0
"""From the store to the host tier: paths that requests want and that are neither on the device nor on the host.

What came is on the host from then on, as if it had been demoted, and is loaded as ever.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redknot_sglang.plan.identity import is_whole
from redknot_sglang.plan.spans import Span, clip, positions_of
from redknot_sglang.radix.paths import nodes_along, reusable_tokens
from redknot_sglang.radix.saved import CLASSES, SavedCache
from redknot_sglang.radix.scope import ALL
from redknot_sglang.radix.stored_marks import mark_stored, unmark
from redknot_sglang.seams.sglang import ComponentType, RadixKey
from redknot_sglang.store.jobs import Fetching, Saving, Stage
from redknot_sglang.store.objects import local_rows


class StoredCache(SavedCache):
    """A tree with a host tier and, if `store` is set, a store behind that."""

    def reset(self) -> None:
        """Forget all paths; what the store has stays there."""
        if self.store is not None:
            self.store.forget()
        self._unsaved.clear()
        super().reset()

    def check_hicache_events(self) -> None:
        """Once a step: note which copies are done, and go on with paths on their way to or from the store."""
        super().check_hicache_events()
        if self.store is None:
            return
        for job in self.store.picked_up():
            if isinstance(job, Saving):
                if job.written:
                    self._written(job)
                self._unlock_host(job.lock)
            else:
                assert isinstance(job, Fetching)
                self._advance(job)
        for job in self.store.late():
            self._give_up(job)
        for node_id in list(self._unsaved):
            self._send(node_id)

    def stop_store(self, why: str) -> None:
        """Neither write nor read any more, for a reason: what is computed from now on is not what names of objects say."""
        if self.store is None:
            return
        self.store.stop(why)
        self._withdraw_saves()
        self._unsaved.clear()
        for job in list(self.store.fetching):
            self._give_up(job)

    def fetch(self, tokens: Any, namespace: str | None) -> Fetching | None:
        """Ask the store for what is neither on the device nor on the host of a path.

        tokens: of the path. namespace: of the path, or None.
        Returns the job to wait for, or None if there is nothing to wait for.
        """
        if self.store is None:
            return None
        key = RadixKey(array("q", tokens), namespace)
        have = reusable_tokens(self, key, is_whole(namespace))
        for job in self.store.fetching:
            if job.key == (namespace, key.token_ids):
                return job
        found = self.store.fetch(np.asarray(key.token_ids, dtype=np.int64), namespace or "", is_whole(namespace), have)
        if found is not None:
            found.key = namespace, key.token_ids
        return found

    def _advance(self, job: Fetching) -> None:
        """Go on with a path that was looked for or read."""
        assert self.store is not None
        lookups = self.store.figures.lookups
        if job.stage is Stage.FOUND:
            if not job.end:
                lookups["miss"] += 1
                self.store.settle(job)
            elif self._take_slots(job):
                self.store.read(job)
            else:
                lookups["failed"] += 1
                self.store.settle(job)
            return
        if job.stage is Stage.READ:
            self._insert_stored(job)
            lookups["hit"] += 1
            self.store.figures.tokens += job.loaded
        else:
            lookups["failed"] += 1
            namespace, tokens = job.key
            unmark(node for node, _ in nodes_along(self, RadixKey(tokens, namespace)))
            self._free_host(job)
        self._let_go(job)
        self.store.settle(job)

    def _give_up(self, job: Fetching) -> None:
        """Nobody waits for a path any longer."""
        assert self.store is not None
        self.store.withdraw(job)
        self._free_host(job)
        self._let_go(job)

    def _let_go(self, job: Fetching) -> None:
        if job.lock is not None:
            self._unlock_host(job.lock)
            job.lock = None

    def _key(self, job: Fetching) -> RadixKey:
        namespace, tokens = job.key
        return RadixKey(tokens[: job.end], namespace)

    def _take_slots(self, job: Fetching) -> bool:
        """Take host slots for what is not on the host yet of a path; whether there was room, and a place in the tree."""
        along = nodes_along(self, self._key(job))
        if any(not node.backuped for node, _ in along):
            # The host has nodes of a path only behind others that it has.
            return False
        assert self.store is not None
        there = sum(matched for _, matched in along)
        local = np.zeros(job.end, dtype=np.bool_)
        local[positions_of(local_rows(job.end, job.whole, self.store.reach))] = True
        at = 0
        for node, matched in along:
            if node.component_data[ComponentType.SWA].host_value is not None:
                local[at : at + matched] = False
            at += matched
        if along:
            end = along[-1][0].id
            with self._scope.within(span=ALL):
                job.lock = end, self.inc_host_lock_ref(end).to_dec_params()
        wanted = np.arange(job.end) >= there, local
        slots: list[Tensor] = []
        for component, needed in zip(CLASSES, wanted, strict=True):
            taken = self._host_slots(component, int(needed.sum()))
            rows = torch.full((job.end,), -1, dtype=torch.int64)
            if taken is not None:
                rows[torch.from_numpy(needed)] = taken
            slots.append(rows)
            if taken is None:
                job.slots = slots[0], slots[-1]
                if len(slots) == 2:
                    self._free_host(job)
                self._let_go(job)
                return False
        job.slots = slots[0], slots[1]
        return True

    def _host_slots(self, component: Any, count: int) -> Tensor | None:
        pool = self._host_pool(component)
        lacking = count - pool.available_size()
        if lacking > 0:
            self.evict_host(lacking, component)
        found: Tensor | None = pool.alloc(count)
        return found

    def _host_pool(self, component: Any) -> Any:
        return self.host_pool_group.entries[CLASSES.index(component)].host_pool

    def _free_host(self, job: Fetching) -> None:
        """Free the host slots that a path still has to itself."""
        for component, rows in zip(CLASSES, job.slots or (), strict=False):
            self._host_pool(component).free(rows[rows >= 0])
        job.slots = None

    def _insert_stored(self, job: Fetching) -> None:
        """Give the tree what came of a path, on the host; others may have cached some of it meanwhile."""
        assert job.slots is not None and self.store is not None
        global_rows, local = job.slots
        key = self._key(job)
        inserted = self.tree_core.insert_host(self.tree_core.root_node.id, key, global_rows, [])
        self._apply_cache_actions(inserted.cache_actions)
        if not inserted.host_insert_dropped:
            # What it found in the tree it has not taken.
            job.loaded = job.end - inserted.prefix_len
            global_rows[inserted.prefix_len :] = -1
            rows = local_rows(job.end, job.whole, self.store.reach)
            self._insert_local(key, local, rows)
            # What was there before may lie in the store or not: of that only the end was read.
            asked = clip(rows, job.have, job.end) if job.whole else rows
            mark_stored(nodes_along(self, key), ([(job.have, job.end)], asked), job.clears)
        self._free_host(job)

    def _insert_local(self, key: RadixKey, local: Tensor, spans: list[Span]) -> None:
        """Give nodes of a path, which ends with one, their local rows where they have none; taken ones become -1 in `local`."""
        heads, start = self.local_heads, 0
        # As where a path is inserted: sinks have nodes of their own, and so has the last window.
        edges = [*spans, (heads.sink, len(key) - heads.window)]
        for node, matched in nodes_along(self, key):
            stop = start + matched
            # SGLang gives what it inserts an empty list of them.
            node.hash_value = node.hash_value or None
            if node.backuped and node.component_data[ComponentType.SWA].host_value is None and clip(spans, start, stop):
                actions: list[Any] = []
                for piece, (a, b) in heads.cut(node, start, stop, heads.within(edges, start, stop), actions):
                    if clip(spans, a, b):
                        heads.give_host_rows(piece, b, local[a:b])
                        local[a:b] = -1
                self._apply_cache_actions(actions)
            if self.events is not None:
                self.events.touch(node)
            start = stop
