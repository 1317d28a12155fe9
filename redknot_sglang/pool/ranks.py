# SPDX-License-Identifier: Apache-2.0
"""What each tensor-parallel rank holds of a head map, and what all of them hold together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.sizing import ClassBytes, class_bytes


@dataclass(frozen=True)
class Ranks:
    """The heads of a model on its tensor-parallel ranks, as SGLang places them once they are dealt out (`dealing.py`).

    A rank has consecutive query heads, and the KV heads that these need. Where there are more ranks than KV heads, a KV
    head is on several ranks, each with another part of its query heads: a query head is on one rank only.

    heads: the whole model's map, in the order in which the ranks take its heads (`Dealing.dealt`).
    group: query heads for each KV head.
    count: ranks.
    """

    heads: HeadMap
    group: int
    count: int

    @property
    def _copies(self) -> int:
        """Ranks that have the same KV head."""
        return max(1, self.count // self.heads.num_kv_heads)

    @property
    def group_of_rank(self) -> int:
        """Query heads for each KV head on one rank. Raises RedKnotError if the ranks cannot have equally many."""
        if self.group % self._copies:
            query_heads = self.heads.num_kv_heads * self.group
            raise RedKnotError(
                f"{query_heads} query heads cannot be spread over --tp-size {self.count}: choose a size that divides them"
            )
        return self.group // self._copies

    def share(self, rank: int) -> HeadMap:
        """The map of one rank: its KV heads, and its own retrieval heads, numbered over its own query heads.

        rank: its number, from 0.
        Raises HeadMapError if there is no such rank or the KV heads cannot be spread over the ranks, and what
        `group_of_rank` raises.
        """
        if self.count == 1:
            return self.heads
        share = self.heads.shard(rank, self.count)
        width = share.num_kv_heads * self.group_of_rank
        own = tuple((layer, head - rank * width) for layer, head in self.heads.retrieval if head // width == rank)
        return replace(share, retrieval=own)

    def own_probe_width(self, rank: int, probe_width: int) -> int:
        """Query heads whose rows one rank keeps for probes: those of its own global heads in the probe layer, perhaps
        none.

        probe_width: on all ranks together, 0 if there are no probes.
        Raises as `share`.
        """
        if self.count == 1 or not probe_width:
            return probe_width
        return self.group_of_rank * self.share(rank).num_global(self.heads.global_layers[0])

    def widest(self, head_dim: int, itemsize: int, probe_width: int = 0) -> ClassBytes:
        """Bytes of a slot on the rank whose global slots take most, with what the busiest rank keeps for probes.

        All ranks have as many slots, since they decide alike, so this rank's memory limits them.
        probe_width: query heads whose rows are kept for probes, on all ranks together. The other parameters are those
            of `class_bytes`.
        Raises as `share`.
        """
        costs = self._costs(head_dim, itemsize, probe_width)
        return replace(max(costs, key=lambda cost: cost.global_slot), probe=max(cost.probe for cost in costs))

    def together(self, head_dim: int, itemsize: int, probe_width: int = 0) -> ClassBytes:
        """Bytes of a slot on all ranks together; a KV head that several ranks have takes room on each of them.

        Parameters as of `widest`. Raises as `share`.
        """
        costs = self._costs(head_dim, itemsize, probe_width)
        return ClassBytes(
            sum(cost.global_slot for cost in costs),
            sum(cost.local_slot for cost in costs),
            sum(cost.probe for cost in costs),
        )

    def _costs(self, head_dim: int, itemsize: int, probe_width: int) -> list[ClassBytes]:
        return [
            class_bytes(self.share(rank), head_dim, itemsize, self.own_probe_width(rank, probe_width))
            for rank in range(self.count)
        ]
