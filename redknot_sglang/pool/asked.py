# SPDX-License-Identifier: Apache-2.0
"""Queries of retrieval heads, kept for the repair policy `question`, which asks cached documents with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap

WHY_NO_RETRIEVAL = "needs a head map with retrieval heads, which `redknot profile` finds on prompts that have documents"


def check_retrieval(heads: HeadMap, group: int) -> None:
    """Raise RedKnotError unless the model has the map's retrieval heads and their keys are kept for whole documents.

    heads: the whole model's map, or a rank's.
    group: query heads for each KV head that it has.
    """
    for layer, head in heads.retrieval:
        if head >= group * heads.num_kv_heads:
            raise RedKnotError(
                f"the head map's retrieval head {layer}.{head} does not exist: the model has {group * heads.num_kv_heads} query "
                "heads in a layer; make the map again with `redknot profile`"
            )
        if head // group not in heads.global_heads(layer):
            raise RedKnotError(
                f"the head map's retrieval head {layer}.{head} belongs to KV head {head // group}, which is local and keeps no keys "
                "of whole documents: make that head global, or leave the retrieval head out"
            )


class AskedQueries:
    """Queries of the retrieval heads, found by *local* slot: every row of a document that is kept for the policy has
    one.

    slots: usable local slots.
    heads: the map of this rank (`Ranks.share`), whose retrieval heads may be none.
    group: query heads for each of its KV heads.
    head_dim, dtype, device: as of the class buffers.

    Attributes:

    rows: [slots + 1, retrieval heads, D], rotated to the positions that they were computed at.
    heads: of each retrieval head its layer, and its KV head's place among the layer's global heads.
    scale: factor of the attention logits; known once rows have been stored.
    """

    def __init__(
        self, slots: int, heads: HeadMap, group: int, head_dim: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        check_retrieval(heads, group)
        self.rows = torch.zeros(slots + 1, len(heads.retrieval), head_dim, dtype=dtype, device=device)
        self.scale = 0.0
        self._addresses: Tensor | None = None
        self.heads = [(layer, heads.global_heads(layer).index(head // group)) for layer, head in heads.retrieval]
        columns: dict[int, tuple[list[int], list[int]]] = {}
        for number, ((layer, head), (_, place)) in enumerate(zip(heads.retrieval, self.heads, strict=True)):
            kept, asked = columns.setdefault(layer, ([], []))
            kept.append(number)
            asked.append(place * group + head % group)
        self._columns = {
            layer: (torch.tensor(kept, device=device), torch.tensor(asked, device=device))
            for layer, (kept, asked) in columns.items()
        }

    def addresses(self, global_kv: Callable[[int], tuple[Tensor, Tensor]]) -> Tensor:
        """Of each retrieval head the address of its layer's keys, its KV head's place among the layer's global heads, and their
        number: int64 [3, retrieval heads] on the device.

        global_kv: K and V of a layer's global heads, `HeadClassPool.global_kv`; they stay where they are.
        """
        if self._addresses is None:
            keys = [global_kv(layer)[0] for layer, _ in self.heads]
            found = [(key.data_ptr(), place, key.shape[1]) for key, (_, place) in zip(keys, self.heads, strict=True)]
            self._addresses = torch.tensor(found, dtype=torch.int64).t().contiguous().to(self.rows.device)
        return self._addresses

    def store(self, layer: int, slots: Tensor, queries: Tensor, scale: float) -> None:
        """Keep a layer's rows; nothing happens if it has no retrieval heads.

        slots: int64 [n], local slots.
        queries: [n, query heads of the layer's global heads, D], in the order of their KV heads.
        scale: of the layer's logits.
        """
        if layer in self._columns:
            kept, asked = self._columns[layer]
            self.rows[slots[:, None], kept] = queries.index_select(1, asked).to(self.rows.dtype)
            self.scale = scale
