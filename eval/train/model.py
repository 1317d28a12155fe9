# SPDX-License-Identifier: Apache-2.0
"""The embedded model in plain torch: Llama's arithmetic, with the attention function left to the caller.

Everything but attention works on flat rows `[N, d]`, so one compiled version serves every batch shape with
the same number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttentionFn = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [B, T, Hq, D], k and v [B, T, Hkv, D]) -> [B, T, Hq, D]; q and k are already rotated."""

MATRIX_NAMES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model and the head classes it is trained to have.

    `global_heads` lists the (layer, KV head) pairs that always see the whole context; every other head is
    trained half of the time with `sink` first tokens plus a window of `window` tokens (the token itself
    included).
    """

    vocab: int = 2048
    width: int = 256
    layers: int = 6
    q_heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    ffn: int = 512
    rope_theta: float = 1e7
    norm_eps: float = 1e-5
    max_positions: int = 8192 + 256
    global_heads: tuple[tuple[int, int], ...] = ((1, 1), (1, 3), (2, 0), (2, 2), (3, 3), (4, 1))
    sink: int = 4
    window: int = 128

    def global_in(self, layer: int) -> list[int]:
        """KV heads of `layer` that are global, ascending."""
        return sorted(h for at, h in self.global_heads if at == layer)

    def local_in(self, layer: int) -> list[int]:
        """KV heads of `layer` that are local, ascending."""
        return [h for h in range(self.kv_heads) if (layer, h) not in self.global_heads]


def rope_table(config: ModelConfig, length: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 [length, D], in Llama's half-split layout."""
    step = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * config.rope_theta**-step
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [N, H, D] with tables [N, D], in float32, returned in x's dtype."""
    wide = x.float()
    low, high = wide.chunk(2, -1)
    return (wide * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]).to(x.dtype)


class Layer(nn.Module):
    """Weights of one decoder layer, matrices stored [out, in]."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()

        def matrix(rows: int, cols: int, gain: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, cols) * (gain / math.sqrt(cols)))

        self.norm_in, self.norm_post = (nn.Parameter(torch.ones(c.width)) for _ in range(2))
        self.q = matrix(c.q_heads * c.head_dim, c.width, 0.7)
        self.k = matrix(c.kv_heads * c.head_dim, c.width, 0.7)
        self.v = matrix(c.kv_heads * c.head_dim, c.width, 0.7)
        self.o = matrix(c.width, c.q_heads * c.head_dim, 0.1)
        self.gate = matrix(c.ffn, c.width, 0.7)
        self.up = matrix(c.ffn, c.width, 0.7)
        self.down = matrix(c.width, c.ffn, 0.1)


def project(c: ModelConfig, x: Tensor, w: tuple[Tensor, ...], cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Rows [N, d] to rotated q [N, Hq, D], rotated k and v [N, Hkv, D]; `w` = (norm, q, k, v)."""
    norm, wq, wk, wv = w
    h = rms_norm(x, norm, c.norm_eps)
    q = rotate(F.linear(h, wq.to(h.dtype)).view(-1, c.q_heads, c.head_dim), cos, sin)
    k = rotate(F.linear(h, wk.to(h.dtype)).view(-1, c.kv_heads, c.head_dim), cos, sin)
    return q, k, F.linear(h, wv.to(h.dtype)).view(-1, c.kv_heads, c.head_dim)


def finish(c: ModelConfig, x: Tensor, attended: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    """Rows [N, d] after attention output [N, Hq * D] and the MLP; `w` = (o, norm, gate, up, down)."""
    wo, norm, gate, up, down = w
    x = x + F.linear(attended, wo.to(x.dtype))
    h = rms_norm(x, norm, c.norm_eps)
    return x + F.linear(F.silu(F.linear(h, gate.to(h.dtype))) * F.linear(h, up.to(h.dtype)), down.to(h.dtype))


def read_out(c: ModelConfig, x: Tensor, norm: Tensor, table: Tensor) -> Tensor:
    """Logits, float32 [N, vocab], of rows [N, d]."""
    h = rms_norm(x, norm, c.norm_eps)
    return F.linear(h, table.to(h.dtype)).float()


class EmbeddedModel(nn.Module):
    """Llama decoder with tied embeddings; parameters float32, activations in `dtype`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab, config.width) * 0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        self.project: Callable[..., tuple[Tensor, ...]] = project
        self.finish: Callable[..., Tensor] = finish

    def compile_rows(self) -> None:
        """Compile the per-row work; worth it only where every batch has the same number of tokens."""
        self.project = torch.compile(project, dynamic=False, fullgraph=True)
        self.finish = torch.compile(finish, dynamic=False, fullgraph=True)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFn, dtype: torch.dtype) -> Tensor:
        """Last hidden rows [B * T, d] (before the final norm) of tokens [B, T], with tables [B * T, D]."""
        c = self.config
        batch, length = tokens.shape
        x = F.embedding(tokens.reshape(-1), self.embedding).to(dtype)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            q, k, v = self.project(c, x, (layer.norm_in, layer.q, layer.k, layer.v), cos, sin)
            q, k, v = (t.view(batch, length, -1, c.head_dim) for t in (q, k, v))
            attended = attention(index, q, k, v).reshape(batch * length, c.q_heads * c.head_dim)
            x = self.finish(c, x, attended, (layer.o, layer.norm_post, layer.gate, layer.up, layer.down))
        return x
