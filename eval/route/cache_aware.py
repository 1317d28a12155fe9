# SPDX-License-Identifier: Apache-2.0
"""The default policy of SGLang's router (`cache_aware`), written anew from its published description, to compare with.

A tree of all prompts that were sent notes which servers got each beginning. A request goes to a server that got the longest
beginning of it, if that is more than `threshold` of the prompt; else, and whenever numbers of open requests are too unequal,
to the server with the fewest open requests, the first of several. So does sglang-router 0.3.2: twelve different prompts, one
after the other, all went to the first of three servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from redknot_sglang.route.choice import Member
from redknot_sglang.route.parts import Wanted


@dataclass
class _Node:
    below: dict[bytes, _Node] = field(default_factory=dict)
    # Servers that got the prompt up to here, the latest last.
    servers: dict[str, None] = field(default_factory=dict)


class CacheAware:
    """See the file. Prompts are matched by whole blocks, and the tree is never pruned: its limit is far above these runs."""

    def __init__(self, threshold: float = 0.3, most_apart: int = 64, most_times: float = 1.5) -> None:
        """The defaults are those of sglang-router 0.3.2.

        threshold: share of a prompt, 0 to 1.
        most_apart, most_times: open requests of the busiest server may exceed those of the least busy one by so many, or
            be so many times as many; if both are exceeded only they count.
        """
        self._root = _Node()
        self._threshold = threshold
        self._most_apart, self._most_times = most_apart, most_times

    def choose(self, wanted: Wanted, members: Sequence[Member]) -> Member:
        """See `redknot_sglang.route.choice.Policy`."""
        least, most = min(member.open for member in members), max(member.open for member in members)
        chosen = min(members, key=lambda member: member.open)
        if most - least <= self._most_apart or most <= least * self._most_times:
            matched, name = self._match(wanted, {member.name for member in members})
            if matched > self._threshold * wanted.prompts[0].tokens:
                chosen = next(member for member in members if member.name == name)
        node = self._root
        for block in wanted.prompts[0].blocks:
            node = node.below.setdefault(block.key, _Node())
            node.servers.pop(chosen.name, None)
            node.servers[chosen.name] = None
        return chosen

    def _match(self, wanted: Wanted, names: set[str]) -> tuple[int, str]:
        node, end, name = self._root, 0, ""
        for block in wanted.prompts[0].blocks:
            below = node.below.get(block.key)
            servers = [server for server in below.servers if server in names] if below else []
            if below is None or not servers:
                break
            node, end, name = below, block.end, servers[-1]
        return end, name
