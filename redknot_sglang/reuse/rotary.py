# SPDX-License-Identifier: Apache-2.0
"""How a loaded model rotates its keys, found in SGLang's rotary embedding modules."""

from __future__ import annotations

from typing import Any

import torch

from redknot_sglang.errors import RotaryError
from redknot_sglang.kernels.relocate import Rotation

# Exact types: a subclass may rotate in another way. All of these turn by a table over positions.
_TABLES = (
    "RotaryEmbedding",
    "LinearScalingRotaryEmbedding",
    "DynamicNTKScalingRotaryEmbedding",
    "DynamicNTKAlphaRotaryEmbedding",
    "Llama3RotaryEmbedding",
    "YaRNScalingRotaryEmbedding",
)
# Models whose keys were checked to be rotated last and in every layer. Others may norm keys after rotating them, or leave
# layers without rotation, which no look at the rotary module can tell.
_MODELS = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
_REASONS = {
    "Phi3LongRoPEScaledRotaryEmbedding": "longrope switches its frequencies with the length of the sequence",
    "MRotaryEmbedding": "mrope positions have several coordinates",
    "YaRNScalingMRotaryEmbedding": "mrope positions have several coordinates",
    "DualChunkRotaryEmbedding": "dual-chunk attention rotates a key in more than one way",
}


def rotation_of(model: torch.nn.Module) -> Rotation:
    """How a loaded SGLang model rotates keys by their position.

    Raises RotaryError, with the reason, for a model whose cached keys cannot be turned to other positions, or whose
    class nobody has checked.
    """
    name = type(model).__name__
    if name not in _MODELS:
        raise RotaryError(f"relocation was not checked for {name}, only for {', '.join(_MODELS)}")
    return rotary_of(model)


def rotary_of(model: torch.nn.Module) -> Rotation:
    """The rotation that all layers of a model share. Raises RotaryError if there is none, or none that RedKnot can turn
    keys by.
    """
    # By identity: SGLang shares one module between layers of the same shape.
    modules = {id(module): module for module in model.modules() if _is_rotary(module)}
    if not modules:
        raise RotaryError("the model has no rotary embedding that RedKnot knows")
    rotations = [_rotation(module) for module in modules.values()]
    first = rotations[0]
    for other in rotations[1:]:
        if other.is_neox != first.is_neox or not torch.equal(other.table, first.table):
            raise RotaryError("the model's layers rotate keys in different ways")
    return first


def _is_rotary(module: Any) -> bool:
    return type(module).__name__.endswith("RotaryEmbedding")


def _rotation(module: Any) -> Rotation:
    name = type(module).__name__
    if name not in _TABLES:
        raise RotaryError(_REASONS.get(name, f"RedKnot does not know how {name} rotates"))
    if len(getattr(module, "scaling_factors", [0])) > 1:
        raise RotaryError("linear rotary scaling with several factors rotates each request in its own way")
    table = module.cos_sin_cache
    norms = torch.hypot(*table[: 1 << 12].float().chunk(2, -1))
    if not torch.allclose(norms, norms[0, 0].expand_as(norms), rtol=2e-2):
        raise RotaryError(f"the table of {name} is not a rotation of one magnitude")
    return Rotation(table, bool(module.is_neox_style))
