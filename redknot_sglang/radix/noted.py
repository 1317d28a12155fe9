# SPDX-License-Identifier: Apache-2.0
"""Nodes in the order in which they go, which hear of nodes that come to be evictable without asking the tree.

A node's rank is not looked at where it is noted, since a request that changes the tree may still change it; and the order in which
nodes are noted is the order in which the tree changed, the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redknot_sglang.radix.uses import Rank
from redknot_sglang.radix.victims import Victims

# Nodes looked at, for each that is asked for, where somebody only wants to know what goes next.
_LOOKS = 20


class Noted:
    """Nodes in the order in which they go, of which those that come to be evictable are noted first.

    rank: place of a node. may_go: whether it may go.
    """

    def __init__(self, rank: Callable[[Any], Rank], may_go: Callable[[Any], bool]) -> None:
        self.victims: Victims[Any] = Victims(rank, may_go)
        self.noted: dict[Any, None] = {}
        self._may_go = may_go

    def note(self, *nodes: Any) -> None:
        """Nodes may go from now on, or their rank is another."""
        self.noted.update(dict.fromkeys(nodes))

    def offer(self) -> None:
        """Put into the heap what was noted since the last call."""
        noted, self.noted = self.noted, {}
        for node in noted:
            if self._may_go(node):
                self.victims.offer(node)

    def first(self, count: int) -> list[Any]:
        """The nodes that go next, at most so many; all stay."""
        self.offer()
        return self.victims.first(count, _LOOKS * count)

    def clear(self) -> None:
        """Forget all nodes."""
        self.victims.clear()
        self.noted.clear()


class NotedLeaves(set[Any]):
    """One of the tree's sets of leaves that may be evicted, which notes what comes in."""

    def __init__(self, order: Noted) -> None:
        super().__init__()
        self._order = order

    def add(self, leaf: Any) -> None:
        super().add(leaf)
        self._order.note(leaf)


class NotedNodes(dict[int, Any]):
    """The nodes of one of the tree's lists, which notes what comes in."""

    def __init__(self, order: Noted) -> None:
        super().__init__()
        self._order = order

    def __setitem__(self, node_id: int, node: Any) -> None:
        super().__setitem__(node_id, node)
        self._order.note(node)
