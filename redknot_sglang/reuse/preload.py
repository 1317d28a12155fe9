# SPDX-License-Identifier: Apache-2.0
"""The list of segments that clients had computed ahead of time, kept beside the tree for `/redknot/segments`.

The list decides nothing: what is reused is what the tree holds, and what the tree holds its own eviction decides. A
segment may be listed and gone, or be there and not be listed. Every tensor-parallel rank keeps the same list.
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
    """A segment's path in the tree. lead: tokens that it was computed after; whole: local heads keep all of its rows.

    extra_key: the namespace of the requests that it is for. repair: the policy that it was asked for with.
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
        """The same for the same path: 32 hexadecimal digits."""
        key = self.key
        return hashlib.sha256(repr(key.extra_key).encode() + b"\0" + key.token_ids.tobytes()).hexdigest()[:32]


class PreloadedSegments:
    """tree: the prefix cache. facts: of the model. longest: tokens from which on a prompt is too long for the server.

    unlock_shared: gives up the locks on what running requests merely share, and may use without them.
    """

    def __init__(self, tree: Any, facts: ModelFacts, longest: int, unlock_shared: Callable[[], object]) -> None:
        self._tree, self._facts = tree, facts
        self._longest, self._unlock_shared = longest, unlock_shared
        # By identity, the one asked for longest ago first.
        self._listed: dict[str, Preloaded] = {}

    def want(self, segments: Sequence[Preloaded]) -> list[bool]:
        """List segments; which of them are wholly in the tree, where they now count as recently used.

        segments: of one request, none empty, all different, with the same lead. Raises RedKnotError if the pools cannot
        hold them.
        """
        check_room(self._tree, self._facts, self._longest, segments)
        there = [self._use(segment) for segment in segments]
        for segment in segments:
            self._listed.pop(segment.identity, None)
            self._listed[segment.identity] = segment
        self._forget_oldest()
        return there

    def listed(self) -> list[dict[str, Any]]:
        """JSON objects: id, tokens, extra_key, repair, and resident_tokens, how many a request would find."""
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
        """Take segments off the list, None for all; JSON objects: id and freed_tokens.

        What a running request, another cached path or a listed segment needs stays in the tree; a segment's lead goes
        with it. Raises RedKnotError, and forgets nothing, if one is not listed.
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
