# SPDX-License-Identifier: Apache-2.0
"""Draft models: of random weights, for any model, and for the embedded one a draft that copies what stood one period before.

The copying one has one layer, made by hand: rotary position embeddings let every query look at the key that lies `period - 1` rows
before its own, whatever the text, and the row there brings the token that followed it. So it is right about text that repeats
itself every `period` tokens, and only if the KV of the rows that it looks at is the draft model's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.serving.harness import MODEL

LAYER, THETA = "layers.0.", 10_000.0


@dataclass(frozen=True)
class Shape:
    """Of a draft model; the default is for the embedded model, with other numbers of heads than that has.

    hidden, vocabulary, context: the target's hidden size, tokens that it knows, and its context length.
    heads, kv_heads, head_dim: of the draft model's one layer.
    layers_read: layers of the target whose output EAGLE-3 reads.
    dtype: of the weights, by its name in torch.
    """

    hidden: int = 256
    vocabulary: int = 2048
    context: int = 8448
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    layers_read: tuple[int, ...] = (0, 2, 4)
    dtype: str = "float32"

    @property
    def intermediate(self) -> int:
        """Width of the MLP, which need not be of use."""
        return self.hidden // 4


EMBEDDED = Shape()
# K and V of all heads together are as wide as a hidden state, for the draft that copies.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = EMBEDDED.hidden, EMBEDDED.heads, EMBEDDED.kv_heads, EMBEDDED.head_dim
# How much a key's place counts in attention, what is copied against what is kept, and what tells places against what tells tokens.
SHARP, LOUD, STEADY = 20.0, 1000.0, 1000.0


def random_draft(folder: Path, algorithm: str, shape: Shape = EMBEDDED) -> Path:
    """Write a draft model of random weights; returns its folder. algorithm: EAGLE or EAGLE3."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(size, generator=generator) * (size[1] ** -0.5 if len(size) > 1 else 1)
        for name, size in _sizes(algorithm, shape).items()
    }
    return _write(folder, algorithm, shape, weights)


def copying_draft(folder: Path, algorithm: str, period: int) -> Path:
    """Write a draft model that expects what stood `period` tokens before; returns its folder. algorithm: EAGLE or EAGLE3."""
    weights = {name: torch.zeros(size) for name, size in _sizes(algorithm, EMBEDDED).items()}
    weights.update({name: torch.ones(weights[name].shape) for name in weights if "norm" in name})
    embeddings = load_file(MODEL / "model.safetensors")["model.embed_tokens.weight"].float()
    # The direction in which tokens differ least.
    steady = torch.linalg.svd(embeddings, full_matrices=False)[2][-1]
    beside = torch.eye(HIDDEN) - steady[:, None] * steady
    if algorithm == "EAGLE":
        size = STEADY * (embeddings @ steady).abs().max()
        weights["fc.weight"] = torch.cat([torch.eye(HIDDEN), torch.zeros(HIDDEN, HIDDEN)], -1)
        tells_place, tells_token = steady / size, LOUD * beside
        weights["fc.bias"] = steady * size
    else:
        none = torch.zeros(HIDDEN)
        tells_place = torch.cat([none, steady / HIDDEN**0.5])
        tells_token = torch.cat([LOUD * beside, torch.zeros(HIDDEN, HIDDEN)], -1)
        weights["fc.bias"] = steady
    angles = THETA ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)) * (period - 1)
    query = torch.cat([angles.cos(), -angles.sin()])
    key = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    attention = f"{LAYER}self_attn."
    weights[f"{attention}q_proj.weight"] = SHARP * query.repeat(HEADS)[:, None] * tells_place
    weights[f"{attention}k_proj.weight"] = SHARP * key.repeat(KV_HEADS)[:, None] * tells_place
    weights[f"{attention}v_proj.weight"] = tells_token
    # The first query head of each group writes what the group's KV head brings.
    out = torch.zeros(HIDDEN, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    out[:, :, 0] = torch.eye(HIDDEN).view(HIDDEN, KV_HEADS, HEAD_DIM)
    weights[f"{attention}o_proj.weight"] = out.reshape(HIDDEN, -1)
    return _write(folder, algorithm, EMBEDDED, weights)


def _sizes(algorithm: str, shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and sizes of a draft model's weights; embeddings and the head are the target's."""
    third, hidden, inner = algorithm == "EAGLE3", shape.hidden, shape.intermediate
    wide, queries, keys = hidden * (2 if third else 1), shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm") if third else ("post_attention_layernorm",)
    return {
        "fc.weight": (hidden, hidden * (len(shape.layers_read) if third else 2)),
        "fc.bias": (hidden,),
        f"{LAYER}self_attn.q_proj.weight": (queries, wide),
        f"{LAYER}self_attn.k_proj.weight": (keys, wide),
        f"{LAYER}self_attn.v_proj.weight": (keys, wide),
        f"{LAYER}self_attn.o_proj.weight": (hidden, queries),
        f"{LAYER}mlp.gate_proj.weight": (inner, hidden),
        f"{LAYER}mlp.up_proj.weight": (inner, hidden),
        f"{LAYER}mlp.down_proj.weight": (hidden, inner),
        **{f"{LAYER}{name}.weight": (hidden,) for name in norms},
        **({"norm.weight": (hidden,)} if third else {}),
    }


def _write(folder: Path, algorithm: str, shape: Shape, weights: dict[str, Tensor]) -> Path:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3" if algorithm == "EAGLE3" else "LlamaForCausalLMEagle"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-05,
        "rope_theta": THETA,
        "tie_word_embeddings": False,
        "bias": True,
        "draft_vocab_size": None,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(shape.layers_read)},
        "torch_dtype": shape.dtype,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    dtype = getattr(torch, shape.dtype)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder
