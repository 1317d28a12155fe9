# SPDX-License-Identifier: Apache-2.0
"""Counts for the status and the metrics of where KV lies: hits on the device and on the host, copies between them,
evictions.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from redknot_sglang.plan.request import is_own_work, state_of
from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.serve.metrics import StoreMetrics, TierMetrics
from redknot_sglang.store.envelope import Refusal

CLASSES = ("global", "local")
TIERS = ("device", "host")
# Moves that copy something; the others free.
_COPIES = ("backed_up", "loaded_back")
_FREES = ("demoted", "dropped", "cooled", "host_dropped", "deleted")


class TierFigures:
    """Listens to a tree and counts what it tells, from the server's start on. *Tiers* are the device and the host
    memory behind it.

    tree: a HeadClassRadixCache, its host tier already there if it has one.
    cost: bytes of a slot of each head class.
    metrics: the metrics to keep up to date; None on a server without metrics.
    stored: the same for the store.
    """

    def __init__(
        self,
        tree: Any,
        cost: ClassBytes,
        metrics: TierMetrics | None = None,
        stored: StoreMetrics | None = None,
    ) -> None:
        self._tree, self._metrics, self._stored = tree, metrics, stored
        self._bytes = {"global": cost.global_slot, "local": cost.local}
        self._hits: Counter[tuple[str, str]] = Counter()
        self._moved: Counter[tuple[str, str]] = Counter()
        self._loads, self._seconds = 0, 0.0
        # Of each tier and class: pieces that were evicted, and their ages together.
        self._ages: Counter[tuple[str, str]] = Counter()
        self._evictions: Counter[tuple[str, str]] = Counter()
        self._host = [entry.host_pool for entry in tree.host_pool_group.entries] if tree.has_host_tier else []

    def request_ended(self, req: Any) -> None:
        """Count what a client's request found in the cache: the prefix that it went on from."""
        if req.finished_reason is None or is_own_work(req):
            return
        state, (window, sink) = state_of(req), self._tree.local_reach
        # Its first row sees so many earlier positions in the local class.
        seen = min(state.start, sink + window - 1)
        for head_class, found, loaded in zip(CLASSES, (state.start, seen), state.loaded, strict=True):
            self._count_hit("host", head_class, min(found, loaded))
            self._count_hit("device", head_class, max(0, found - loaded))

    def slots_changed(self) -> None:
        """Show the new state."""
        if self._metrics is not None:
            for head_class, pool in zip(CLASSES, self._host, strict=False):
                self._metrics.set_used(head_class, pool.size - pool.available_size())
        if self._stored is not None:
            self._stored.update(store_status(self._tree.store))

    def kv_moved(self, move: Any, global_tokens: int, local_tokens: int) -> None:
        """Count tokens that were copied or freed.

        move: the tree's `Move`, what was done.
        global_tokens, local_tokens: of how many tokens in each head class.
        """
        for head_class, tokens in zip(CLASSES, (global_tokens, local_tokens), strict=True):
            self._moved[move.value, head_class] += tokens
            if self._metrics is not None and tokens:
                size = tokens * self._bytes[head_class] if move.value in _COPIES else 0
                self._metrics.count_move(move.value, head_class, tokens, size)

    def kv_left(self, tier: str, head_class: str, tokens: int, age: int) -> None:
        """Note the age of a piece that was evicted from a tier: tokens that requests have brought since its last use."""
        self._ages[tier, head_class] += age
        self._evictions[tier, head_class] += 1
        if self._metrics is not None:
            self._metrics.observe_age(tier, head_class, age)

    def loads_done(self, seconds: float) -> None:
        """Count loads from the host that were begun together, and their time."""
        self._loads += 1
        self._seconds += seconds
        if self._metrics is not None:
            self._metrics.observe_load(seconds)

    def status(self) -> dict[str, Any]:
        """As JSON types: `host`, slots of each head class there, or None; `store`, see `store_status`, or None; and what was counted since
        the server began.

        `hit_tokens` by tier; `copied_tokens` and `copied_bytes` to the host (`backed_up`) and back (`loaded_back`); `evicted_tokens`,
        by reason: for want of room with copies left on the host (`demoted`) or not (`dropped`), since the lifetime was over (`cooled`), for
        want of room on the host (`host_dropped`), and since a client asked (`deleted`), each by head class; `age_at_eviction`, of each tier
        and class the `pieces` evicted and their `mean` age in tokens, or None; `loads` and the seconds that they took.
        """
        moved = {move: self._by_class(self._moved, move) for move in (*_COPIES, *_FREES)}
        return {
            "host": self._host_state(),
            "store": None if self._tree.store is None else store_status(self._tree.store),
            "hit_tokens": {tier: self._by_class(self._hits, tier) for tier in TIERS},
            "copied_tokens": {move: moved[move] for move in _COPIES},
            "copied_bytes": {
                move: {name: tokens * self._bytes[name] for name, tokens in moved[move].items()} for move in _COPIES
            },
            "evicted_tokens": {move: moved[move] for move in _FREES},
            "age_at_eviction": {tier: {name: self._age(tier, name) for name in CLASSES} for tier in TIERS},
            "loads": self._loads,
            "load_seconds": self._seconds,
        }

    def _age(self, tier: str, head_class: str) -> dict[str, int | None]:
        pieces = self._evictions[tier, head_class]
        return {"pieces": pieces, "mean": self._ages[tier, head_class] // pieces if pieces else None}

    def _host_state(self) -> dict[str, dict[str, int]] | None:
        if not self._host:
            return None
        return {
            head_class: {
                "slots": pool.size,
                "used": pool.size - pool.available_size(),
                "bytes_per_slot": pool.size_per_token,
            }
            for head_class, pool in zip(CLASSES, self._host, strict=True)
        }

    def _count_hit(self, tier: str, head_class: str, tokens: int) -> None:
        self._hits[tier, head_class] += tokens
        if self._metrics is not None and tokens:
            self._metrics.count_hit(tier, head_class, tokens)

    @staticmethod
    def _by_class(counts: Counter[tuple[str, str]], kind: str) -> dict[str, int]:
        return {head_class: counts[kind, head_class] for head_class in CLASSES}


def store_status(store: Any) -> dict[str, Any]:
    """What a `store.Store` has done since the server began, as JSON types.

    `backend`; `state`: `working`, `failing` while it is left alone after a failure, or `stopped`, with the reason in `stopped`. `objects` and
    `bytes`, `written` and `read`; `lookups`, paths that were asked for by what came of it; `tokens`, of the paths that came; `refused`,
    objects that were not used by reason; `failures`, how often `write` and `read` failed; `skipped`, paths that were not written
    (`store/figures.py`); `pending`, paths that wait to be written and to be read.
    """
    figures = store.figures
    moves = ("written", "read")
    return {
        "backend": store.name,
        "state": store.state,
        "stopped": store.stopped,
        "objects": {move: figures.objects[move] for move in moves},
        "bytes": {move: figures.size[move] for move in moves},
        "lookups": {result: figures.lookups[result] for result in ("hit", "miss", "late", "failed")},
        "tokens": figures.tokens,
        "refused": {reason.value: figures.refused[reason] for reason in list(Refusal)},
        "failures": {"write": store.writing.failures, "read": store.reading.failures},
        "skipped": figures.skipped,
        "pending": {"write": len(store.saving), "read": len(store.fetching)},
    }
