# SPDX-License-Identifier: Apache-2.0
"""What segmented mode has to know of a loaded model.

It is found once, when the attention backend starts, and handed to all who need it.
"""

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
    """How the attention output of the first layer with global heads changes the values of the second one, to first
    order.

    This is the linear map through the first layer's output projection, the second layer's norm weight and its value
    projection. What lies between the two layers and the norm's division are left out; the division is the same for all
    parts of a row.

    model: a loaded SGLang model of a class that `reuse/rotary.py` names.
    heads: the model's head map.
    head_dim: D.
    Returns float32 [n_q * D, n_v * D], n_q the query heads of the first layer's global KV heads and n_v the second
    layer's global KV heads.
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
    """What of the model a probe (`reuse/probe.py`) computes with. The probe layer is the first layer with global heads.

    heads: the model's head map.
    head_dim: D.
    scale: factor of the attention logits of the probe layer.
    readout: what `readout_of` returns.
    """

    heads: HeadMap
    head_dim: int
    scale: float
    readout: Tensor

    @classmethod
    def of(cls, model: Any, heads: HeadMap, head_dim: int) -> ProbeLayer:
        """The probe layer of a loaded SGLang model, on one rank.

        heads: the head map of the whole model.
        head_dim: D.
        """
        attention = model.model.layers[heads.global_layers[0]].self_attn.attn
        return cls(heads, head_dim, attention.scaling, readout_of(model, heads, head_dim))


@dataclass(eq=False)
class ModelFacts:
    """What one tensor-parallel rank has to know of the model.

    rotation: how the model rotates keys by their position; None if cached keys cannot be moved to other positions.
    why_not: why they cannot; None if they can.
    arithmetic: how many operations prefill takes, on all ranks together, so that all ranks decide alike; None without a
        rotation.
    probe: what probes compute with; None without a rotation, and on a server that keeps nothing for probes.
    """

    rotation: Rotation | None = None
    why_not: str | None = None
    arithmetic: Arithmetic | None = None
    probe: ProbeLayer | None = None

    @classmethod
    def of(
        cls, model: Any, model_config: Any, heads: HeadMap, head_dim: int, probe_width: int, ranks: int
    ) -> ModelFacts:
        """The facts about a loaded SGLang model.

        model_config: SGLang's ModelConfig of it.
        heads: the head map of the whole model.
        head_dim: D.
        probe_width: query heads whose rows the pool keeps for probes; 0 if none, as always with several ranks.
        ranks: tensor-parallel ranks.
        """
        try:
            rotation = rotation_of(model)
        except RotaryError as error:
            return cls(why_not=str(error))
        arithmetic = Arithmetic.of(model_config.hf_text_config, heads, head_dim, probe_width, ranks)
        probe = ProbeLayer.of(model, heads, head_dim) if probe_width else None
        return cls(rotation, arithmetic=arithmetic, probe=probe)

    def follow_weights(self, model: Any) -> None:
        """The model's weights have been updated: make anew what is derived from them."""
        if self.probe is not None:
            self.probe = ProbeLayer.of(model, self.probe.heads, self.probe.head_dim)
