# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of prefill, counted from shapes: what a plan computes, and what dense prefill would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from redknot_sglang.heads import HeadMap
from redknot_sglang.plan.spans import Positions


@dataclass(frozen=True)
class Arithmetic:
    """Operations of a decoder, on all tensor-parallel ranks together; a multiplication and an addition are two.

    row: of a row's projections and MLP in all layers. pair: of one query head with one key, logit and value. wide, near:
    query heads of the global and of the local class in all layers. probe: query heads of the probe layer. window, sink: of
    the local class. Norms, rotation, softmax and the output layer, which one row of a prompt passes, are left out.
    """

    row: int
    pair: int
    wide: int
    near: int
    probe: int
    window: int
    sink: int

    @classmethod
    def of(cls, config: Any, heads: HeadMap, head_dim: int, probe: int, ranks: int = 1) -> Arithmetic:
        """For a model with a dense gated MLP, from its Hugging Face config.

        heads: the whole model's map. probe: see above. ranks: if there are more than KV heads, each computes its copy of one.
        """
        group = config.num_attention_heads // config.num_key_value_heads
        values = head_dim * (2 * config.num_attention_heads + 2 * max(config.num_key_value_heads, ranks))
        weights = config.hidden_size * (values + 3 * config.intermediate_size)
        wide = group * sum(heads.num_global(layer) for layer in range(heads.num_layers))
        near = group * heads.num_kv_heads * heads.num_layers - wide
        row = 2 * heads.num_layers * weights
        return cls(row, 4 * head_dim, wide, near, probe, heads.window, heads.sink)

    def computed(self, rows: Positions) -> int:
        """Rows at these positions, under the head map."""
        keys = rows + 1
        seen = self.wide * keys.sum() + self.near * np.minimum(keys, self.window + self.sink).sum()
        return self.row * len(rows) + self.pair * int(seen)

    def cost(self, position: int) -> int:
        """One row at this position, under the head map."""
        keys = position + 1
        return self.row + self.pair * (self.wide * keys + self.near * min(keys, self.window + self.sink))

    def dense(self, length: int) -> int:
        """All rows of a prompt, every head over everything before: stock SGLang without a cache."""
        return self.row * length + self.pair * (self.wide + self.near) * (length * (length + 1) // 2)

    def probed(self, rows: Positions) -> int:
        """A probe of rows at these positions."""
        return self.pair * self.probe * int((rows + 1).sum())
