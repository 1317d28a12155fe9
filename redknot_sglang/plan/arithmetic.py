# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of prefill, counted from the model's shape.

Reports set what a request computed beside what *dense* prefill would have computed: all rows, every head over the whole
prompt, nothing reused. A *row* is one token that goes through the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from redknot_sglang.heads import HeadMap
from redknot_sglang.plan.spans import Positions


@dataclass(frozen=True)
class Arithmetic:
    """How many operations a decoder takes, on all tensor-parallel ranks together. A multiplication and an addition
    count as two.

    row: operations of one row in the projections and the MLP of all layers.
    pair: operations of one query head for one key: its part of the logit and of the weighted sum of values.
    wide: query heads of the global class, summed over all layers.
    near: query heads of the local class, summed over all layers.
    probe: query heads that a probe runs (the global ones of the probe layer, see `reuse/probe.py`).
    window: W of the local class, in tokens.
    sink: S of the local class, in tokens.
    Not counted: norms, rotation, softmax, and the output layer, through which only one row of a prompt goes.
    """

    row: int
    pair: int
    wide: int
    near: int
    probe: int
    window: int
    sink: int

    @classmethod
    def of(
        cls, config: Any, heads: HeadMap, head_dim: int, probe: int, ranks: int = 1, layers: int | None = None
    ) -> Arithmetic:
        """The counts of a model with gated MLPs, or with experts in their place, of which a row goes through a few.

        config: its Hugging Face config.
        heads: the head map of the whole model, not of one rank.
        head_dim: values of one head's key.
        probe: query heads that a probe runs.
        ranks: tensor-parallel ranks. Where they are more than the KV heads, several ranks compute the same KV head.
        layers: how many layers a row goes through, the first one first; None for all.
        """
        layers = heads.num_layers if layers is None else layers
        group = config.num_attention_heads // config.num_key_value_heads
        values = head_dim * (2 * config.num_attention_heads + 2 * max(config.num_key_value_heads, ranks))
        weights = config.hidden_size * (layers * values + sum(_widths(config, layers)))
        wide = group * sum(heads.num_global(layer) for layer in range(layers))
        near = group * heads.num_kv_heads * layers - wide
        return cls(2 * weights, 4 * head_dim, wide, near, probe, heads.window, heads.sink)

    def computed(self, rows: Positions) -> int:
        """Operations of the rows at these positions (int64 [n]) under the head map."""
        keys = rows + 1
        seen = self.wide * keys.sum() + self.near * np.minimum(keys, self.window + self.sink).sum()
        return self.row * len(rows) + self.pair * int(seen)

    def cost(self, position: int) -> int:
        """Operations of the one row at this position under the head map."""
        keys = position + 1
        return self.row + self.pair * (self.wide * keys + self.near * min(keys, self.window + self.sink))

    def dense(self, length: int) -> int:
        """Operations of a whole prompt of `length` tokens in stock SGLang without a cache: every head sees all that
        came before.
        """
        return self.row * length + self.pair * (self.wide + self.near) * (length * (length + 1) // 2)

    def probed(self, rows: Positions) -> int:
        """Operations of a probe that looks at the rows at these positions (int64 [n])."""
        return self.pair * self.probe * int((rows + 1).sum())


def _widths(config: Any, layers: int) -> list[int]:
    """Of each layer the values that its MLP computes of a row for each value that goes in: the gates, the projections up and
    down, and the router's scores if the layer has experts.
    """
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    dense = 3 * config.intermediate_size
    if not experts:
        return [dense] * layers
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    # Qwen2-MoE has one more expert for all rows, and a gate of its own.
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    some = experts + 3 * config.num_experts_per_tok * width + (3 * shared + 1 if shared else 0)
    step, without = getattr(config, "decoder_sparse_step", 1) or 1, getattr(config, "mlp_only_layers", None) or ()
    return [dense if layer in without or (layer + 1) % step else some for layer in range(layers)]
