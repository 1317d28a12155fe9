# SPDX-License-Identifier: Apache-2.0
"""The list of segments (documents) that clients had computed ahead of time, for the route `/redknot/segments`.

The list only remembers. What is reused is what the prefix tree holds, and the tree evicts as it always does. So a
segment may be listed and no longer be cached, or be cached and not be listed. Every tensor-parallel rank keeps the same
list.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.identity import namespace_of
from redknot_sglang.radix.paths import nodes_along, reusable_tokens
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.preload_room import check_room
from redknot_sglang.seams.sglang import RadixKey


@dataclass(frozen=True)
class Preloaded:
    """A segment that a client wants ahead of time.

    lead: ids of the tokens that it is computed after, int64; may be empty.
    tokens: its own ids, int64.
    extra_key: namespace of the requests that it is for; requests of another one do not find it.
    whole: whether local heads keep all of its rows, as some repair policies need.
    repair: the repair policy that the client named for it.
    """

    lead: array[int]
    tokens: array[int]
    extra_key: str | None
    whole: bool
    repair: str

    @property
    def key(self) -> RadixKey:
        """Its key in the tree, as `Plan.paths` makes it."""
        return RadixKey(self.lead + self.tokens, namespace_of(self.extra_key, self.whole))

    @property
    def identity(self) -> str:
        """Its id for clients, 32 hexadecimal digits: a hash of namespace and tokens, the same for the same path."""
        key = self.key
        return hashlib.sha256(repr(key.extra_key).encode() + b"\0" + key.token_ids.tobytes()).hexdigest()[:32]


class PreloadedSegments:
    """The list of preloaded segments.

    tree: the HeadClassRadixCache.
    facts: what segmented mode has to know of the model.
    longest: a prompt of this many tokens or more is too long for the server.
    unlock_shared: gives up the locks that keep segments which several running requests have used (`reuse/shared.py`).
    """

    def __init__(self, tree: Any, facts: ModelFacts, longest: int, unlock_shared: Callable[[], object]) -> None:
        self._tree, self._facts = tree, facts
        self._longest, self._unlock_shared = longest, unlock_shared
        # By identity, the one asked for longest ago first.
        self._listed: dict[str, Preloaded] = {}

    def want(self, segments: Sequence[Preloaded]) -> list[bool]:
        """Put segments on the list. Returns of each whether it is wholly in the tree; if so, it now counts as recently
        used.

        segments: of one client's request; none empty, all different, all with the same lead.
        Raises RedKnotError if the pools cannot hold them.
        """
        check_room(self._tree, self._facts, self._longest, segments)
        there = [self._use(segment) for segment in segments]
        for segment in segments:
            self._listed.pop(segment.identity, None)
            self._listed[segment.identity] = segment
        self._forget_oldest()
        return there

    def listed(self) -> list[dict[str, Any]]:
        """All listed segments as JSON objects: id, tokens (how many), extra_key, repair, and resident_tokens, which
        says how many of its tokens a request would find in the cache.
        """
        return [
            {
                "id": identity,
                "tokens": len(segment.tokens),
                "extra_key": segment.extra_key,
                "repair": segment.repair,
                "resident_tokens": max(0, reusable_tokens(self._tree, segment.key, segment.whole) - len(segment.lead)),
            }
            for identity, segment in self._listed.items()
        ]

    def forget(self, identities: Sequence[str] | None) -> list[dict[str, Any]]:
        """Take segments off the list and out of the cache. Returns JSON objects: id and freed_tokens.

        identities: their ids; None for all.
        A segment's lead goes with it. What running requests, other cached paths or segments that stay listed need is
        not freed. Raises RedKnotError, and changes nothing, if one of them is not listed.
        """
        wanted = list(self._listed) if identities is None else list(dict.fromkeys(identities))
        unknown = [identity for identity in wanted if identity not in self._listed]
        if unknown:
            raise RedKnotError(f"no segment {unknown[0]!r} is listed; GET /redknot/segments lists all there are")
        gone = {identity: self._listed.pop(identity) for identity in wanted}
        # What running requests merely share is theirs already.
        self._unlock_shared()
        held = self._held({namespace_of(segment.extra_key, segment.whole) for segment in gone.values()})
        return [
            {"id": identity, "freed_tokens": self._tree.free_path(segment.key, held)}
            for identity, segment in gone.items()
        ]

    def _held(self, namespaces: Set[str | None]) -> set[int]:
        """Ids of the nodes that listed segments in these namespaces need."""
        keys = (segment.key for segment in self._listed.values())
        paths = (nodes_along(self._tree, key) for key in keys if key.extra_key in namespaces)
        return {node.id for path in paths for node, _ in path}

    def _use(self, segment: Preloaded) -> bool:
        key = segment.key
        locked = self._tree.lock_path(key.token_ids, key.extra_key, segment.whole)
        if locked is None:
            return False
        _, node, lock = locked
        self._tree.dec_lock_ref(node, lock.to_dec_params())
        return True

    def _forget_oldest(self) -> None:
        # A tree cannot hold more tokens than there are slots, so a longer list would name some that are gone.
        tokens = sum(len(segment.tokens) for segment in self._listed.values())
        while tokens > self._tree.token_to_kv_pool_allocator.size_full:
            oldest = next(iter(self._listed))
            tokens -= len(self._listed.pop(oldest).tokens)
