# SPDX-License-Identifier: Apache-2.0
"""What segmented mode has to know of a loaded model, found when the attention backend starts and handed to all who need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.errors import RotaryError
from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.plan.arithmetic import Arithmetic
from redknot_sglang.reuse.rotary import rotation_of


def readout_of(model: Any, heads: HeadMap, head_dim: int) -> Tensor:
    """What the second layer with global heads makes of the first one's attention output, to first order.

    model: a loaded SGLang model of a class that `reuse/rotary.py` names. Returns float32 [query heads * D of the first
    layer's global heads, D * global heads of the second]: values for one unit of output each, the norm's division left
    out, which is the same for all parts of a row.
    """
    probe, following = heads.global_layers[:2]
    first, second = model.model.layers[probe], model.model.layers[following]
    weight = second.input_layernorm.weight
    group = first.self_attn.num_heads // heads.num_kv_heads
    rows = [head * group + member for head in heads.global_heads(probe) for member in range(group)]
    units = torch.zeros(
        len(rows), head_dim, first.self_attn.num_heads, head_dim, dtype=weight.dtype, device=weight.device
    )
    for i, row in enumerate(rows):
        units[i, :, row] = torch.eye(head_dim, dtype=weight.dtype, device=weight.device)
    # Through the modules, not their weights: those may be packed or quantised.
    with torch.no_grad():
        inputs = units.flatten(2).flatten(0, 1)
        made, none = (
            second.self_attn.qkv_proj(first.self_attn.o_proj(x)[0] * weight)[0].float()
            for x in (inputs, torch.zeros_like(inputs[:1]))
        )
    values = (made - none)[:, -heads.num_kv_heads * head_dim :].unflatten(1, (heads.num_kv_heads, head_dim))
    return values[:, list(heads.global_heads(following))].flatten(1).contiguous()


@dataclass(frozen=True, eq=False)
class ProbeLayer:
    """What a probe (`reuse/probe.py`) computes with, beside the rows that the pool keeps.

    scale: of the logits of the probe layer, the first with global heads. readout: see `readout_of`.
    """

    heads: HeadMap
    head_dim: int
    scale: float
    readout: Tensor

    @classmethod
    def of(cls, model: Any, heads: HeadMap, head_dim: int) -> ProbeLayer:
        """Of a loaded SGLang model on one rank; heads: the whole model's map."""
        attention = model.model.layers[heads.global_layers[0]].self_attn.attn
        return cls(heads, head_dim, attention.scaling, readout_of(model, heads, head_dim))


@dataclass(eq=False)
class ModelFacts:
    """Of the model, as one tensor-parallel rank has to know it.

    rotation: how it rotates keys; None if cached keys cannot be moved, for the reason `why_not`. arithmetic: what prefill
    costs on all ranks together, so that they decide alike; probe: for choosing rows, None on a server that keeps no probes. Without a rotation there are neither.
    """

    rotation: Rotation | None = None
    why_not: str | None = None
    arithmetic: Arithmetic | None = None
    probe: ProbeLayer | None = None

    @classmethod
    def of(
        cls, model: Any, model_config: Any, heads: HeadMap, head_dim: int, probe_width: int, ranks: int
    ) -> ModelFacts:
        """Of a loaded SGLang model and its ModelConfig. heads: the whole model's map. probe_width: query heads that the pool keeps
        for probes, 0 if none, as always with several ranks.
        """
        try:
            rotation = rotation_of(model)
        except RotaryError as error:
            return cls(why_not=str(error))
        arithmetic = Arithmetic.of(model_config.hf_text_config, heads, head_dim, probe_width, ranks)
        probe = ProbeLayer.of(model, heads, head_dim) if probe_width else None
        return cls(rotation, arithmetic=arithmetic, probe=probe)

    def follow_weights(self, model: Any) -> None:
        """Make anew what is derived from the model's weights, since they have been updated."""
        if self.probe is not None:
            self.probe = ProbeLayer.of(model, self.probe.heads, self.probe.head_dim)
