# SPDX-License-Identifier: Apache-2.0
"""Finds the parts of a transformers model. To profile another class of models, add it here.

A class fits if its attention modules call the attention function that transformers looks up for them, with rotated
queries and keys, and if a layer is a function of hidden states and position tables only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from redknot_sglang.errors import ProfileError


@dataclass(frozen=True)
class Parts:
    """Modules of a decoder.

    embed: token ids to hidden states.
    layers: in order.
    rotary: makes the position tables that every layer gets.
    norm: after the last layer.
    head: hidden states to logits.
    attentions: of each layer the module that calls the attention function.
    outputs: of each layer the projection from attention output [.., Q * D] to the hidden size.
    """

    embed: nn.Module
    layers: list[nn.Module]
    rotary: nn.Module
    norm: nn.Module
    head: nn.Module
    attentions: list[nn.Module]
    outputs: list[nn.Module]


def llama_parts(model: Any) -> Parts:
    """Parts of a class that is laid out like transformers' Llama."""
    decoder = model.model
    layers = list(decoder.layers)
    attentions = [layer.self_attn for layer in layers]
    outputs = [attention.o_proj for attention in attentions]
    return Parts(
        decoder.embed_tokens,
        layers,
        decoder.rotary_emb,
        decoder.norm,
        model.get_output_embeddings(),
        attentions,
        outputs,
    )


ADAPTERS: dict[str, Callable[[Any], Parts]] = {
    name: llama_parts
    for name in (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    )
}


def find_parts(model: Any) -> Parts:
    """Parts of a transformers model. Raises ProfileError for a class or an attention that is not known."""
    name = type(model).__name__
    if name not in ADAPTERS:
        raise ProfileError(
            f"{name} cannot be profiled; known: {', '.join(ADAPTERS)}. A class laid out like one of these needs one entry "
            "in redknot_sglang.profile.adapters.ADAPTERS"
        )
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    own_window = name in ("MistralForCausalLM", "MixtralForCausalLM") and model.config.sliding_window is not None
    if kinds != {"full_attention"} or own_window:
        raise ProfileError(
            "the model has sliding windows of its own, which SGLang --redknot does not serve: take another model"
        )
    return ADAPTERS[name](model)
