# SPDX-License-Identifier: Apache-2.0
"""Counters on the nodes of a tree, for `--radix-eviction-policy redknot`: `retention.py` decides, this says what was used.

Each node has two counters, one for each head class. Global heads need every node that a request passes through. Local heads
need the tail at the boundary from which a request goes on, and the sinks. A request counts once, when its prompt is cached, and
a segment when a request has relocated it. A node that no request has brought gets its counters when it is asked for first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redknot_sglang.radix.local_locks import SINK
from redknot_sglang.radix.retention import Retention, block_size, blocks_of
from redknot_sglang.radix.uses import Rank, Uses
from redknot_sglang.seams.sglang import ComponentType, RadixKey

POLICY = "redknot"
_USES, _START, _REACH = "uses", "start", "reach"


def _data(node: Any, component_type: Any) -> dict[str, Any]:
    data = node.component_data[component_type]
    marks: dict[str, Any] = data.metadata
    return marks


class Keeper:
    """The counters of one tree.

    tree: the HeadClassRadixCache.
    cost: of computing a token at a position, as in `Retention`.
    """

    def __init__(self, tree: Any, cost: Callable[[int], int]) -> None:
        self._tree = tree
        self._cost = cost
        self._capacity: int = tree.token_to_kv_pool_allocator.size_full
        self.reset()

    def reset(self) -> None:
        """Forget everything, as the tree does when it is flushed."""
        self.retention = Retention(self._capacity, self._cost)
        self._block = block_size(self._capacity)

    # ---- counters -------------------------------------------------------------------------------------------------

    def global_uses(self, node: Any) -> Uses:
        """A node's counter of requests that passed through it."""
        uses: Uses = self._of(node, ComponentType.FULL)[_USES]
        return uses

    def local_uses(self, node: Any) -> Uses:
        """A node's counter of requests that went on from its end, or so shortly behind that their window reaches it."""
        uses: Uses = self._of(node, ComponentType.SWA)[_USES]
        return uses

    def start_of(self, node: Any) -> int:
        """Position of a node's first token in its path."""
        start: int = self._of(node, ComponentType.FULL)[_START]
        return start

    def _of(self, node: Any, component_type: Any) -> dict[str, Any]:
        if _START not in _data(node, ComponentType.FULL):
            parent, root = node.parent, self._tree.tree_core.root_node
            start = 0 if parent is root else self.start_of(parent) + len(parent.key)
            self.start_counters(node, start, start + len(node.key), ())
        return _data(node, component_type)

    # ---- new nodes ------------------------------------------------------------------------------------------------

    def remembered(self, key: RadixKey, start: int) -> list[tuple[int, int]]:
        """What is known of the rest of a path that was in the tree once.

        key: the whole path.
        start: position from which it is not in the tree.
        Returns, of each block that ends behind `start` and was seen, where it ends and what is remembered of its uses.
        """
        end, found = 0, []
        for name, tokens in self._blocks(key.token_ids[: len(key)], key.extra_key):
            end += tokens
            if end > start:
                known = self.retention.known(name)
                if not known:
                    break
                found.append((end, known))
        return found

    def start_counters(self, node: Any, start: int, end: int, remembered: Sequence[tuple[int, int]]) -> None:
        """Give the nodes of a new part of a path their counters.

        node: the last of them.
        start, end: positions that they cover.
        remembered: of this part, as `remembered` returns it.
        """
        while end > start:
            known = next((count for stop, count in remembered if stop >= end), 0)
            _data(node, ComponentType.FULL).update({_USES: self.retention.started(known), _START: end - len(node.key)})
            _data(node, ComponentType.SWA)[_USES] = self.retention.started()
            end -= len(node.key)
            node = node.parent

    def split(self, upper: Any, lower: Any) -> None:
        """A node was split: both halves were used as often as it.

        upper: the new node. lower: what is left of the old one.
        """
        if _START not in _data(lower, ComponentType.FULL):
            return
        for component_type in (ComponentType.FULL, ComponentType.SWA):
            _data(upper, component_type)[_USES] = _data(lower, component_type)[_USES].copy()
        start = _data(lower, ComponentType.FULL)[_START]
        _data(upper, ComponentType.FULL)[_START] = start
        _data(lower, ComponentType.FULL)[_START] = start + len(upper.key)

    # ---- uses -----------------------------------------------------------------------------------------------------

    def admit(self, tokens: Sequence[int], namespace: str | None, found: int | None = None) -> int | None:
        """A request comes with this path, or relocates a segment that has it; its uses are noted next.

        found: of a segmented request, the tokens of its path from which it went on.
        Returns the position up to which they count, None for all.
        """
        return self.retention.admit(self._blocks(tokens, namespace), found)

    def use(self, passed: Sequence[Any], ended: Sequence[Any], counted: int | None = None) -> None:
        """Note a use of nodes. passed, ended: as `ages.nodes_used` returns them; `passed` begins where the path ends.

        counted: position up to which it counts; None for all nodes.
        """
        if passed:
            end = self.start_of(passed[0]) + len(passed[0].key)
            for node in passed:
                marks = _data(node, ComponentType.SWA)
                if marks.get(SINK):
                    marks[_REACH] = max(end, marks.get(_REACH, 0))

        def counts(node: Any) -> bool:
            return counted is None or self.start_of(node) < counted

        self.retention.use([(self.global_uses(node), counts(node)) for node in passed])
        self.retention.use([(self.local_uses(node), counts(node)) for node in ended])

    def _blocks(self, tokens: Sequence[int], namespace: str | None) -> list[tuple[int, int]]:
        return blocks_of(tokens, namespace or "", self._block)

    # ---- ranks ----------------------------------------------------------------------------------------------------

    def global_rank(self, node: Any) -> Rank:
        """A leaf's place in the global class: lower goes first."""
        return self.retention.global_rank(self.global_uses(node), self.start_of(node))

    def local_rank(self, node: Any) -> Rank:
        """A live node's place in the local class: lower goes first.

        A sink is used with each path behind it, and worth as much as the tail at the end of the longest: so it goes after the
        tails that need it, and not after those of paths that are used more.
        """
        marks = _data(node, ComponentType.SWA)
        if marks.get(SINK):
            end = marks.get(_REACH, len(node.key))
            rows = min(self._tree.local_heads.window, end)
            return self.retention.local_rank(self.local_uses(node), end - rows, rows, end - rows)
        gap, above = 0, node.parent
        while above is not self._tree.tree_core.root_node and _has_no_local(above):
            gap, above = gap + len(above.key), above.parent
        return self.retention.local_rank(self.local_uses(node), self.start_of(node), len(node.key), gap)


def _has_no_local(node: Any) -> bool:
    data = node.component_data[ComponentType.SWA]
    return data.value is None and data.host_value is None


class EvictionStrategy:
    """Our place in SGLang's table of eviction policies; the tree gives it its keeper."""

    keeper: Keeper | None = None

    def get_priority(self, node: Any) -> Rank:
        """A node's place, for walks of SGLang's own; lower goes first."""
        assert self.keeper is not None, f"the radix cache backend is not redknot's, but its eviction policy is {POLICY}"
        return self.keeper.global_rank(node)
