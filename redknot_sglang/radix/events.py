# SPDX-License-Identifier: Apache-2.0
"""KV events: which beginnings of prompts a server can reuse, in the form in which SGLang tells routers (`--kv-events-config`).

SGLang tells of every node of its tree, by hashes of the tokens from the root on. With head classes that would promise too much, so
here a node is told only while all of this holds:

- a prompt can be reused up to the end of the node or of one below it: the sinks and the window before that place are there;
- its path is one of exact mode. Those of segmented requests depend on policy and borders too, and no router can know them.

The first hash of a path is made with its namespace, so that blocks of two tenants never look alike. Paths without a namespace have
SGLang's own hashes.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from redknot_sglang.plan.identity import own_part
from redknot_sglang.radix.local_locks import SINK
from redknot_sglang.seams.sglang import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    StorageMedium,
)

_SALT = b"redknot namespace\0"


def first_hash(namespace: str | None) -> str | None:
    """What the first block of a path is hashed behind: SHA-256 in hex digits; None in the empty namespace, as in SGLang.

    namespace: `extra_key` of requests, with what SGLang adds to it: cache salt and adapter.
    """
    if not namespace:
        return None
    return sha256(_SALT + namespace.encode("utf-8", "surrogatepass")).hexdigest()


def block_hashes(tokens: Iterable[int], before: str | None) -> list[str]:
    """SGLang's hashes of blocks of one token: SHA-256 of the hash before and the token, 4 bytes, the lowest first.

    SGLang compiles a function for them when it needs the first one, and a scheduler would wait for that.

    tokens: of a path, in order. before: hash of the block before the first one, or None.
    Returns one for each token, in hex digits.
    """
    data, digest, found = array("I", tokens).tobytes(), bytes.fromhex(before or ""), list[str]()
    for at in range(0, len(data), 4):
        digest = sha256(digest + data[at : at + 4]).digest()
        found.append(digest.hex())
    return found


def number_of(block_hash: str) -> int:
    """A hash as events have it: its first 64 bits as a signed number."""
    return int.from_bytes(bytes.fromhex(block_hash[:16]), "big", signed=True)


class Events:
    """What is told of one tree. It hears of changes as they happen, and looks at what they come to when it is asked for events."""

    def __init__(self, tree: Any) -> None:
        """tree: a HeadClassRadixCache, which is empty."""
        self._tree, self._core = tree, tree.tree_core
        self._queue: list[Any] = [AllBlocksCleared()]
        # Nodes and the media on which they were told to be, by id; a node that has left the tree stays until that is told.
        self._told: dict[int, tuple[Any, set[Any]]] = {}
        # Ids of nodes at or below which a prompt can be reused.
        self._leading: set[int] = set()
        # What may have changed: nodes themselves, and nodes on whose local KV those below them depend.
        self._touched: dict[int, Any] = {}
        self._changed: dict[int, Any] = {}

    def take(self) -> list[Any]:
        """Events since the last call, in order: SGLang's BlockStored, BlockRemoved and AllBlocksCleared. A block is one token."""
        self._look()
        events, self._queue = self._queue, []
        return events

    def touch(self, node: Any) -> None:
        """A node came or goes, or its global KV did."""
        self._touched[node.id] = node
        if node.parent is not None:
            self._touched[node.parent.id] = node.parent

    def local_changed(self, node: Any) -> None:
        """A node's local KV came or went."""
        self._changed[node.id] = node

    def split(self, upper: Any, lower: Any) -> None:
        """A node was split. upper: the new node. lower: what is left of the old one."""
        if lower.id in self._told:
            self._told[upper.id] = upper, set(self._told[lower.id][1])
        if lower.id in self._leading:
            self._leading.add(upper.id)
        for noted in (self._touched, self._changed):
            if lower.id in noted:
                noted[upper.id] = upper

    def clear(self) -> None:
        """The tree is empty again."""
        self._queue = [AllBlocksCleared()]
        for noted in (self._told, self._leading, self._touched, self._changed):
            noted.clear()

    def _look(self) -> None:
        """Find what has changed, and queue what is to be told of it."""
        root, seen = self._core.root_node, dict[int, tuple[int, Any]]()
        pending: list[tuple[int, int, Any]] = []

        def look_at(node: Any) -> None:
            if node is not root and node.id not in seen:
                seen[node.id] = (depth := _depth(node)), node
                heapq.heappush(pending, (-depth, node.id, node))

        for node in [*self._touched.values(), *self._below_changed()]:
            look_at(node)
        self._touched.clear()
        self._changed.clear()
        while pending:
            # The deepest first: what leads on depends on what is below.
            *_, node = heapq.heappop(pending)
            leads = self._leads(node)
            if leads != (node.id in self._leading):
                (self._leading.add if leads else self._leading.discard)(node.id)
                if node.parent is not None:
                    look_at(node.parent)
        order = [node for _, node in sorted(seen.values(), key=lambda one: one[0])]
        wanted = {node.id: self._media(node) for node in order}
        for node in reversed(order):
            self._remove(node, wanted[node.id])
        for node in order:
            self._store(node, wanted[node.id])

    def _below_changed(self) -> list[Any]:
        """Nodes whose local KV changed, and those below from whose ends it is seen."""
        component, window = self._tree.local_heads.component_type, self._tree.local_heads.window
        found: dict[int, Any] = {}
        for changed in self._changed.values():
            is_sink = bool(changed.component_data[component].metadata.get(SINK))
            stack = [(changed, 0)]
            while stack:
                node, between = stack.pop()
                found[node.id] = node
                if is_sink or between < window:
                    stack += [(child, between + len(child.key)) for child in node.children.values()]
        return list(found.values())

    def _is_there(self, node: Any) -> bool:
        try:
            return self._core.node_by_id(node.id) is node
        except KeyError:
            return False

    def _leads(self, node: Any) -> bool:
        """Whether a prompt of exact mode can be reused up to the end of a node or of one below it."""
        if not self._is_there(node) or own_part(node.key.extra_key)[1]:
            return False
        return any(child.id in self._leading for child in node.children.values()) or self._is_boundary(node)

    def _is_boundary(self, node: Any) -> bool:
        path = []
        while node is not self._core.root_node:
            path.append(node)
            node = node.parent
        valid, is_valid = self._tree.local_heads.create_match_validator(), False
        for above in reversed(path):
            is_valid = valid(above)
        return is_valid

    def _media(self, node: Any) -> set[Any]:
        """Where a node is to be told to be."""
        if node.id not in self._leading:
            return set()
        # A copy to the host that is under way counts: until it is done, the node stays on the device.
        places = ((StorageMedium.GPU, not node.evicted), (StorageMedium.CPU, node.backuped))
        return {medium for medium, is_there in places if is_there}

    def _remove(self, node: Any, wanted: set[Any]) -> None:
        _, told = self._told.get(node.id, (node, set()))
        for medium in sorted(told - wanted):
            self._queue.append(BlockRemoved(block_hashes=_blocks(node), medium=medium))
            told.discard(medium)
        if not told:
            self._told.pop(node.id, None)

    def _store(self, node: Any, wanted: set[Any]) -> None:
        _, told = self._told.get(node.id, (node, set()))
        for medium in sorted(wanted - told):
            self._hash(node)
            above = node.parent
            self._queue.append(
                BlockStored(
                    block_hashes=_blocks(node),
                    parent_block_hash=None if above is self._core.root_node else number_of(above.hash_value[-1]),
                    token_ids=list(node.key.token_ids[: len(node.key)]),
                    block_size=1,
                    lora_id=None,
                    medium=medium,
                )
            )
        if wanted:
            self._told[node.id] = node, wanted

    def _hash(self, node: Any) -> None:
        """Give a node and those above it their hashes, one for each token, where they have none."""
        path = []
        while node is not self._core.root_node and not node.hash_value:
            path.append(node)
            node = node.parent
        for below in reversed(path):
            at_root = below.parent is self._core.root_node
            prior = first_hash(below.key.extra_key) if at_root else below.parent.hash_value[-1]
            below.hash_value = block_hashes(below.key.token_ids[: len(below.key)], prior)


def _blocks(node: Any) -> list[int]:
    return [number_of(value) for value in node.hash_value]


def _depth(node: Any) -> int:
    depth = 0
    while node.parent is not None:
        depth, node = depth + 1, node.parent
    return depth
