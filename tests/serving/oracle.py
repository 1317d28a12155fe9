# SPDX-License-Identifier: Apache-2.0
"""An independent float32 model of the head map's definition: plain torch Llama, dense masks per head.

Shares no code with the server; a local head of the row at position p sees q <= p with q > p - W or q < S.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class OracleModel:
    """Llama weights in float32 with one mask per KV head."""

    def __init__(self, model_dir: Path, head_map: dict | None = None) -> None:
        """head_map: the native JSON object, or None for plain causal attention."""
        self.config = json.loads((model_dir / "config.json").read_text())
        self.weights = {name: tensor.float() for name, tensor in load_file(model_dir / "model.safetensors").items()}
        self.head_map = head_map

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> Tensor:
        """Log-probabilities of the next token after every position: float32 [len(ids), vocabulary]."""
        config, weights = self.config, self.weights
        x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
        cos, sin = self._rotation(len(ids))
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            hidden = self._norm(x, weights[prefix + "input_layernorm.weight"])
            x = x + self._attention(hidden, prefix + "self_attn.", layer, cos, sin)
            hidden = self._norm(x, weights[prefix + "post_attention_layernorm.weight"])
            gate = F.silu(hidden @ weights[prefix + "mlp.gate_proj.weight"].T)
            x = (
                x
                + (gate * (hidden @ weights[prefix + "mlp.up_proj.weight"].T))
                @ weights[prefix + "mlp.down_proj.weight"].T
            )
        x = self._norm(x, weights["model.norm.weight"])
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return (x @ head.T).log_softmax(-1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * weight

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        dim = self.config["head_dim"]
        frequency = self.config["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
        angle = torch.arange(length).double()[:, None] * frequency
        return angle.cos().float(), angle.sin().float()

    def _attention(self, hidden: Tensor, prefix: str, layer: int, cos: Tensor, sin: Tensor) -> Tensor:
        dim, heads, kv_heads = (self.config[k] for k in ("head_dim", "num_attention_heads", "num_key_value_heads"))
        length, group = len(hidden), heads // kv_heads
        q = _rotate((hidden @ self.weights[prefix + "q_proj.weight"].T).view(length, heads, dim), cos, sin)
        k = _rotate((hidden @ self.weights[prefix + "k_proj.weight"].T).view(length, kv_heads, dim), cos, sin)
        v = (hidden @ self.weights[prefix + "v_proj.weight"].T).view(length, kv_heads, dim)
        out = torch.empty_like(q)
        for head in range(heads):
            mask = self._mask(length, layer, head // group)
            scores = q[:, head] @ k[:, head // group].T / dim**0.5
            out[:, head] = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v[:, head // group]
        return out.reshape(length, heads * dim) @ self.weights[prefix + "o_proj.weight"].T

    def _mask(self, length: int, layer: int, kv_head: int) -> Tensor:
        row = torch.arange(length)[:, None]
        column = torch.arange(length)[None]
        causal = column <= row
        if self.head_map is None or self.head_map["layers"][layer][kv_head] == "G":
            return causal
        window, sink = self.head_map["local"]["window"], self.head_map["local"]["sink"]
        return causal & ((column > row - window) | (column < sink))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
