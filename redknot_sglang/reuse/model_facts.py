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
from redknot_sglang.reuse.probe_ranks import ONE_RANK, ProbeRanks
from redknot_sglang.reuse.rotary import rotation_of


def readout_of(model: Any, heads: HeadMap, head_dim: int, ranks: ProbeRanks = ONE_RANK) -> Tensor:
    """How the attention output of the first layer with global heads changes the values of the second one, to first
    order.

    This is the linear map through the first layer's output projection, the second layer's norm weight and its value
    projection. What lies between the two layers and the norm's division are left out; the division is the same for all
    parts of a row.

    model: a loaded SGLang model of a class that `reuse/rotary.py` names.
    heads: the whole model's head map, in the order in which the ranks take its heads.
    head_dim: D.
    ranks: the tensor-parallel ranks. All of them have to call this.
    Returns float32 [n_q * D, n_v * D], n_q those query heads of the first layer's global KV heads that are on this
    rank, and n_v all of the second layer's global KV heads.
    """
    probe, following = heads.global_layers[:2]
    first, second = model.model.layers[probe], model.model.layers[following]
    weight, width = second.input_layernorm.weight, first.self_attn.num_heads
    group = width * ranks.count // heads.num_kv_heads
    queries = [head * group + member for head in heads.global_heads(probe) for member in range(group)]
    mine = [place for place, query in enumerate(queries) if query // width == ranks.rank]
    units = torch.zeros(len(queries), head_dim, width, head_dim, dtype=weight.dtype, device=weight.device)
    for place in mine:
        units[place, :, queries[place] % width] = torch.eye(head_dim, dtype=weight.dtype, device=weight.device)
    # Through the modules, not their weights: those may be packed or quantised.
    with torch.no_grad():
        inputs = units.flatten(2).flatten(0, 1)
        made, none = (
            second.self_attn.qkv_proj(_projected(first.self_attn.o_proj, x, ranks) * weight)[0].float()
            for x in (inputs, torch.zeros_like(inputs[:1]))
        )
    kept = max(1, heads.num_kv_heads // ranks.count)
    values = (made - none)[:, -kept * head_dim :].unflatten(1, (kept, head_dim))
    found = _of_all_ranks(values, heads, following, ranks)
    return found.unflatten(0, (len(queries), head_dim))[mine].flatten(2).flatten(0, 1).contiguous()


def _projected(projection: Any, x: Tensor, ranks: ProbeRanks) -> Tensor:
    """Output of an output projection, of which each rank has some columns. Models differ in when they sum it up over
    the ranks.
    """
    if ranks.count == 1:
        output: Tensor = projection(x)[0]
        return output
    return ranks.sum(projection(x, skip_all_reduce=True)[0])


def _of_all_ranks(values: Tensor, heads: HeadMap, layer: int, ranks: ProbeRanks) -> Tensor:
    """The values of all global heads of a layer, where each rank has those of its own heads.

    values: float32 [n, KV heads of this rank, D].
    Returns float32 [n, global heads of the layer, D].
    """
    begin, kept = ranks.rank * heads.num_kv_heads // ranks.count, values.shape[1]
    # Where several ranks have the same KV head, the first of them gives its values.
    gives = ranks.rank % max(1, ranks.count // heads.num_kv_heads) == 0
    wanted = heads.global_heads(layer)
    found = values.new_zeros(values.shape[0], len(wanted), values.shape[2])
    for place, head in enumerate(wanted):
        if gives and 0 <= head - begin < kept:
            found[:, place] = values[:, head - begin]
    return ranks.sum(found)


@dataclass(frozen=True, eq=False)
class ProbeLayer:
    """What of the model a probe (`reuse/probe.py`) computes with. The probe layer is the first layer with global heads.

    heads: the whole model's head map, in the order in which the ranks take its heads.
    head_dim: D.
    scale: factor of the attention logits of the probe layer.
    readout: what `readout_of` returns.
    ranks: the tensor-parallel ranks, each with some of the probe layer's heads.
    """

    heads: HeadMap
    head_dim: int
    scale: float
    readout: Tensor
    ranks: ProbeRanks = ONE_RANK

    @classmethod
    def of(cls, model: Any, heads: HeadMap, head_dim: int, ranks: ProbeRanks = ONE_RANK) -> ProbeLayer:
        """The probe layer of a loaded SGLang model. All ranks have to call this; parameters as of `readout_of`."""
        attention = model.model.layers[heads.global_layers[0]].self_attn.attn
        return cls(heads, head_dim, attention.scaling, readout_of(model, heads, head_dim, ranks), ranks)


@dataclass(eq=False)
class ModelFacts:
    """What one tensor-parallel rank has to know of the model.

    rotation: how the model rotates keys by their position; None if cached keys cannot be moved to other positions.
    why_not: why they cannot; None if they can.
    arithmetic: how many operations prefill takes, on all ranks together, so that all ranks decide alike; None without a
        rotation.
    asking_layers: how many layers a text that asks for documents goes through, the first one first, where that is not all. 0
        for all: where the last one has a retrieval head, and where a draft model reads what comes out of it.
    asking: `arithmetic` of the layers that such a text goes through; None without a rotation.
    probe: what probes compute with; None without a rotation, and on a server that keeps nothing for probes.
    """

    rotation: Rotation | None = None
    why_not: str | None = None
    arithmetic: Arithmetic | None = None
    asking_layers: int = 0
    asking: Arithmetic | None = None
    probe: ProbeLayer | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        model_config: Any,
        heads: HeadMap,
        head_dim: int,
        probe_width: int,
        ranks: ProbeRanks,
        drafts: bool = False,
    ) -> ModelFacts:
        """The facts about a loaded SGLang model.

        model_config: SGLang's ModelConfig of it.
        heads: the head map of the whole model, in the order in which the ranks take its heads.
        head_dim: D.
        probe_width: query heads whose rows the pools of all ranks keep for probes; 0 if none.
        ranks: the tensor-parallel ranks. All of them have to call this.
        drafts: whether a draft model reads what comes out of the last layer.
        """
        try:
            rotation = rotation_of(model)
        except RotaryError as error:
            return cls(why_not=str(error))
        asking_layers = 0 if drafts else heads.asking_layers % heads.num_layers
        arithmetic, asking = (
            Arithmetic.of(model_config.hf_text_config, heads, head_dim, probe_width, ranks.count, layers)
            for layers in (None, asking_layers or None)
        )
        probe = ProbeLayer.of(model, heads, head_dim, ranks) if probe_width else None
        return cls(rotation, arithmetic=arithmetic, asking_layers=asking_layers, asking=asking, probe=probe)

    def follow_weights(self, model: Any) -> None:
        """The model's weights have been updated, on all ranks: make anew what is derived from them."""
        if self.probe is not None:
            self.probe = ProbeLayer.of(model, self.probe.heads, self.probe.head_dim, self.probe.ranks)
