# SPDX-License-Identifier: Apache-2.0
"""From the host tier to the store: paths go on as soon as their copies on the host are complete.

What is written is what the host tier keeps (`local_host.py`): global rows of all tokens, and local rows of the sink and of the window before
each boundary from which a request may go on; of whole paths all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from redknot_sglang.plan.identity import is_whole
from redknot_sglang.plan.spans import union
from redknot_sglang.radix.host_tier import HostTierCache
from redknot_sglang.radix.scope import ALL
from redknot_sglang.radix.stored_marks import mark_stored
from redknot_sglang.seams.sglang import ComponentType
from redknot_sglang.store.jobs import Saving
from redknot_sglang.store.objects import local_rows
from redknot_sglang.store.store import Store
from redknot_sglang.store.writer import slots_of

CLASSES = (ComponentType.FULL, ComponentType.SWA)


class SavedCache(HostTierCache):
    """A tree with a host tier whose paths go to `store`, if that is set."""

    def __init__(self, params: Any) -> None:
        self.store: Store | None = None
        # Ends of paths that are being copied to the host, and go to the store afterwards.
        self._unsaved: dict[int, None] = {}
        super().__init__(params)

    def clear_storage_backend(self) -> bool:
        """Remove all objects of the store in the background, other servers' too. Returns whether there is a store."""
        if self.store is not None:
            self.store.clear()
        return self.store is not None

    def _save_path(self, node_id: int, limit: int | None = None) -> bool:
        copied = super()._save_path(node_id, limit)
        if copied and self.store is not None:
            self._unsaved[node_id] = None
        return copied

    def _send(self, node_id: int) -> None:
        """Hand a path to the store once all its copies on the host are complete."""
        assert self.store is not None
        path = self._path(node_id)
        if any(node.write_through_pending_id is not None for node in path):
            return
        del self._unsaved[node_id]
        while path and not path[-1].backuped:
            path.pop()
        ends = self._ends(path)
        if not ends or not self.store.room():
            return
        end, whole = path[-1], is_whole(path[0].key.extra_key)
        tokens = np.concatenate([np.asarray(node.key.token_ids[: len(node.key)], dtype=np.int64) for node in path])
        slots = [
            slots_of([(len(node.key), node.component_data[component].host_value) for node in path])
            for component in CLASSES
        ]
        with self._scope.within(span=ALL):
            lock = end.id, self.inc_host_lock_ref(end.id).to_dec_params()
        namespace = end.key.extra_key or ""
        self.store.save(Saving(tokens, namespace, whole, (slots[0], slots[1]), lock, ends=ends, node=node_id))

    def _path(self, node_id: int) -> list[Any]:
        """The nodes of a path, the first position first; none if its end has left the tree."""
        try:
            node = self.tree_core.node_by_id(node_id)
        except KeyError:
            return []
        path = []
        while node is not self.tree_core.root_node:
            path.append(node)
            node = node.parent
        return path[::-1]

    def _ends(self, path: list[Any]) -> tuple[int, ...]:
        """Boundaries of a path on the host behind which all that a next row sees locally is there, too, and worth fetching.

        A whole path is asked for as a whole.
        """
        assert self.store is not None
        reach, threshold = self.store.reach, self.store.patience.threshold
        stop = run = 0
        sinks, ends = True, []
        for node in path:
            start, stop = stop, stop + len(node.key)
            is_there = node.component_data[ComponentType.SWA].host_value is not None
            run = run + len(node.key) if is_there else 0
            sinks = sinks and (is_there or start >= reach.sink)
            if sinks and run >= min(stop, reach.window) and stop >= threshold:
                ends.append(stop)
        if path and is_whole(path[0].key.extra_key):
            return (stop,) if run == stop >= threshold else ()
        return tuple(ends)

    def _written(self, job: Saving) -> None:
        """A path is in the store."""
        assert self.store is not None
        local = union(span for end in job.ends for span in local_rows(end, job.whole, self.store.reach))
        path = [(node, len(node.key)) for node in self._path(job.node)]
        mark_stored(path, ([(0, job.ends[-1])], local), job.clears)

    def _unlock_host(self, lock: tuple[int, Any]) -> None:
        self.dec_host_lock_ref(*lock)

    def _withdraw_saves(self) -> None:
        """Take all paths back that are on their way to the store, so that nothing is locked for it; they are sent again."""
        if self.store is None:
            return
        for job in list(self.store.saving):
            self.store.withdraw(job)
            self._unlock_host(job.lock)
            self._unsaved[job.node] = None
