# SPDX-License-Identifier: Apache-2.0
"""A prefix cache of blocks that only counts: what is cached is a tree, and leaves are evicted in a policy's order.

`Ours` is what a server decides with, `redknot_sglang/radix/retention.py`. The others order leaves as SGLang's classes of the
same names do (`mem_cache/evict_policy.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eval.retention.traces import BLOCK, Request
from redknot_sglang.radix.retention import Retention
from redknot_sglang.radix.uses import Uses
from redknot_sglang.radix.victims import Victims

Blocks = Sequence[tuple[int, int]]  # name and tokens of each block


class Node:
    """A cached block. start: position of its first token. uses: what the policy knows of it."""

    __slots__ = ("children", "name", "parent", "start", "tokens", "uses")

    def __init__(self, name: int, tokens: int, parent: Node | None, start: int, uses: Any) -> None:
        self.name, self.tokens, self.parent, self.start, self.uses = name, tokens, parent, start, uses
        self.children = 0


class Policy(Protocol):
    """What is kept."""

    def admit(self, path: Blocks, found: int | None = None) -> int | None:
        """A request comes; its blocks are made and used next.

        found: of a segmented request's own path, the tokens from which it went on; None for any other path.
        Returns the position up to which it counts as a use; None for all of it.
        """

    def known(self, name: int) -> int:
        """What is remembered of a block, before the request that brings it was admitted."""

    def started(self, known: int) -> Any:
        """What is known of a new block."""

    def use(self, uses: Sequence[tuple[Any, bool]]) -> None:
        """A request uses blocks, the last first; each with whether that counts."""

    def rank(self, node: Node) -> Any:
        """What compares smaller goes first."""


class Counting:
    """LRU, LFU and SLRU: by the last use and the number of uses.

    order: the rank of a block from these two.
    """

    def __init__(self, order: Callable[[int, int], Any]) -> None:
        self._order, self._time = order, 0

    def admit(self, path: Blocks, found: int | None = None) -> None:
        """Nothing depends on what comes."""

    def known(self, name: int) -> int:
        """Nothing is remembered."""
        return 0

    def started(self, known: int) -> list[int]:
        """Last use and number of uses."""
        return [0, 0]

    def use(self, uses: Sequence[tuple[list[int], bool]]) -> None:
        """The later, the higher."""
        for found, _ in uses:
            self._time += 1
            found[0], found[1] = self._time, found[1] + 1

    def rank(self, node: Node) -> Any:
        """By the order that was given."""
        return self._order(*node.uses)


class Ours:
    """What a server decides with."""

    def __init__(self, capacity: int, cost: Callable[[int], int]) -> None:
        self.retention = Retention(capacity, cost)
        self.admit, self.known = self.retention.admit, self.retention.known
        self.started, self.use = self.retention.started, self.retention.use

    def rank(self, node: Node) -> Any:
        """The rank of the global class."""
        uses: Uses = node.uses
        return self.retention.global_rank(uses, node.start)


POLICIES: dict[str, Callable[[int, Callable[[int], int]], Policy]] = {
    "lru": lambda capacity, cost: Counting(lambda last, uses: last),
    "lfu": lambda capacity, cost: Counting(lambda last, uses: (uses, last)),
    # A node is made with the first use, which SGLang counts too, and is protected from the second on.
    "slru": lambda capacity, cost: Counting(lambda last, uses: (uses >= 2, last)),
    "redknot": Ours,
}


class BlockTree:
    """The cache.

    capacity: tokens that it holds.
    policy: what is kept.
    """

    def __init__(self, capacity: int, policy: Policy) -> None:
        self.capacity, self.held = capacity, 0
        self.policy = policy
        self.nodes: dict[int, Node] = {}
        self._busy: set[int] = set()
        self._held: set[int] = set()
        self._victims: Victims[Node] = Victims(policy.rank, self._may_go)

    def ask(self, request: Request) -> int:
        """A request; returns how many of its tokens were cached: in its own path, and in documents behind what was found of that."""
        own = request.blocks()
        if not request.documents:
            return self.access(own)
        hits = begin = self._found(own)
        # What was found is needed until the request's end.
        self._held = {name for name, _ in own}
        for first, names in request.documents:
            covered = max(0, begin - first * BLOCK)
            if covered < len(names) * BLOCK:
                hits += max(0, self.access([(name, BLOCK) for name in names]) - covered)
        self._held = set()
        self.access(own, begin)
        return hits

    def _found(self, path: Blocks) -> int:
        hits = 0
        for name, tokens in path:
            if name not in self.nodes:
                break
            hits += tokens
        return hits

    def access(self, path: Blocks, went_on: int | None = None) -> int:
        """A path comes to be used; returns how many of its tokens were cached.

        went_on: of a segmented request's own path, the tokens from which it went on; None for any other path.
        """
        policy, nodes = self.policy, self.nodes
        hits, known = self._found(path), [policy.known(name) for name, _ in path if name not in nodes]
        missing = iter(known)
        counted = policy.admit(path, went_on)
        parent, start, used = None, 0, list[Node]()
        for name, tokens in path:
            node = nodes.get(name)
            if node is None:
                node = nodes[name] = Node(name, tokens, parent, start, policy.started(next(missing)))
                self.held += tokens
                if parent is not None:
                    parent.children += 1
            used.append(node)
            parent, start = node, start + tokens
        policy.use([(node.uses, counted is None or node.start < counted) for node in reversed(used)])
        self._victims.offer(used[-1])
        self._shrink({name for name, _ in path}, used)
        return hits

    def _shrink(self, busy: set[int], used: list[Node]) -> None:
        self._busy = busy
        while self.held > self.capacity and (node := self._victims.take()) is not None:
            self._remove(node)
        self._busy = set()
        if used[-1].children == 0:
            self._victims.offer(used[-1])

    def _may_go(self, node: Node) -> bool:
        return not node.children and node.name not in self._busy and node.name not in self._held

    def _remove(self, node: Node) -> None:
        del self.nodes[node.name]
        self.held -= node.tokens
        if node.parent is not None:
            node.parent.children -= 1
            if not node.parent.children:
                self._victims.offer(node.parent)


def distinct_tokens(requests: Sequence[Request]) -> int:
    """Tokens of a trace's paths, each block once; documents that are parts of them are not counted again."""
    return sum({name: tokens for request in requests for name, tokens in request.blocks()}.values())


def token_hits(paths: Sequence[Blocks], capacity: int, policy: Policy) -> tuple[int, int]:
    """Tokens that were cached, and all tokens, of paths that meet an empty cache of `capacity` tokens."""
    tree = BlockTree(capacity, policy)
    return sum(map(tree.access, paths)), sum(tokens for path in paths for _, tokens in path)


def request_hits(requests: Sequence[Request], capacity: int, policy: Policy) -> tuple[int, int]:
    """The same of a trace's requests, some of which may be segmented."""
    tree = BlockTree(capacity, policy)
    return sum(map(tree.ask, requests)), sum(request.input_length for request in requests)
