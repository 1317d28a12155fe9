# SPDX-License-Identifier: Apache-2.0
"""Causal attention of the training run: global and local heads, whole prompts and documents in isolation.

Isolation is a matter of shape here: in an isolated batch every document has the same length and the documents
fill the first `split` positions, so a document is a short sequence of its own and the rest is a suffix that
sees all. A dense masked version of the same definition serves evaluation at any document length, and checks
the fast one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.train.model import AttentionFn, ModelConfig


@dataclass(frozen=True)
class Layout:
    """How a batch is attended: under the head map or plainly; first `split` positions cut into isolated
    documents.

    split is a multiple of `document`; 0 means ordinary causal attention over everything.
    """

    mapped: bool
    split: int = 0
    document: int = 0


def make_attention(
    c: ModelConfig, layout: Layout, observe: Callable[[int, Tensor, Tensor], None] | None = None
) -> AttentionFn:
    """Attention for one batch; `observe(layer, q, k)` sees each layer's rotated q and k, for supervision."""
    group = c.q_heads // c.kv_heads

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if observe is not None:
            observe(layer, q, k)
        local = c.local_in(layer) if layout.mapped else []
        if not local:
            return _by_layout(layout, _full, q, k, v)
        wide = c.global_in(layer)
        near = _by_layout(layout, _windowed(c), _heads(q, local, group), _heads(k, local), _heads(v, local))
        if not wide:
            return near
        far = _by_layout(layout, _full, _heads(q, wide, group), _heads(k, wide), _heads(v, wide))
        # Restores head order by position: cheaper and simpler for autograd than two index writes.
        return _heads(torch.cat([far, near], 2), _inverse(wide + local), group)

    return attention


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _heads(x: Tensor, chosen: list[int], group: int = 1) -> Tensor:
    """Heads of x [B, T, H, D]: `group` consecutive ones for each index in `chosen`."""
    return torch.cat([x[:, :, h * group : (h + 1) * group] for h in chosen], 2)


CoreFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Last R rows q [B, R, Hq, D] of a sequence k, v [B, T, Hkv, D] -> [B, R, Hq, D]."""


def _by_layout(layout: Layout, core: CoreFn, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not layout.split:
        return core(q, k, v)
    batch, _, _, dim = q.shape

    def documents(x: Tensor) -> Tensor:
        return x[:, : layout.split].reshape(-1, layout.document, x.shape[2], dim)

    inside = core(documents(q), documents(k), documents(v)).reshape(batch, layout.split, -1, dim)
    return torch.cat([inside, core(q[:, layout.split :], k, v)], 1)


def _full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, length = q.shape[1], k.shape[1]
    if rows < length:
        # Rows in front cost little next to a masked kernel, and keep the fast causal one; their output is
        # dropped.
        q = F.pad(q, (0, 0, 0, 0, length - rows, 0))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)[:, length - rows :]


def _windowed(c: ModelConfig) -> CoreFn:
    """Sink + window in blocks of `window` rows: each sees its own block, the one before, and the sinks."""

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (batch, rows, q_heads, dim), length = q.shape, k.shape[1]
        size, sinks = c.window, _padded_sinks(c)
        if rows % size or length % size:
            raise ValueError(f"windowed training attention needs multiples of {size} positions, got {rows}, {length}")
        skipped = (length - rows) // size

        def blocks(x: Tensor) -> Tensor:
            """[B, T, H, D] -> [B * n, H, 2 * size + sinks, D] for the blocks that have rows."""
            head = x[:, None, :sinks].expand(-1, rows // size, -1, -1, -1)
            own = x.unflatten(1, (-1, size))
            before = F.pad(own, (0, 0, 0, 0, 0, 0, 1, 0))[:, skipped:-1]
            return torch.cat([before, own[:, skipped:], head], 2).flatten(0, 1).transpose(1, 2)

        mask = _block_mask(c, skipped, rows // size, q.device, q.dtype).repeat(batch, 1, 1)[:, None]
        group = q_heads // k.shape[2]
        grouped = q.unflatten(1, (-1, size)).flatten(0, 1).transpose(1, 2)
        keys, values = (blocks(x).repeat_interleave(group, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask.expand(-1, q_heads, -1, -1))
        return out.transpose(1, 2).reshape(batch, rows, q_heads, dim)

    return core


def _padded_sinks(c: ModelConfig) -> int:
    # Masked SDPA kernels want the number of key columns to be a multiple of eight.
    return -(-c.sink // 8) * 8


@lru_cache(maxsize=64)
def _block_mask(c: ModelConfig, skipped: int, blocks: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Additive mask [blocks, size, 2 * size + sinks] for blocks `skipped`, `skipped + 1`, ..."""
    size = c.window
    block = torch.arange(skipped, skipped + blocks, device=device)[:, None]
    row = block * size + torch.arange(size, device=device)
    near = (block - 1) * size + torch.arange(2 * size, device=device)
    head = torch.arange(_padded_sinks(c), device=device).expand(blocks, -1)
    distance = row[:, :, None] - near[:, None]
    in_window = (distance >= 0) & (distance < size) & (near[:, None] >= 0)
    is_sink = (head < c.sink)[:, None] & (row[:, :, None] - head[:, None] >= size)
    seen = torch.cat([in_window, is_sink], 2)
    return torch.zeros(seen.shape, device=device, dtype=dtype).masked_fill_(~seen, float("-inf"))


def make_dense_attention(c: ModelConfig, mapped: bool, document: Tensor) -> AttentionFn:
    """The same attention by explicit masks, for documents of any length.

    document: int [B, T], the number of the isolated document a position belongs to, 0 for rows that see
    everything. Sinks of a row inside a document are the first tokens of that document.
    """
    length = document.shape[1]
    at = torch.arange(length, device=document.device)
    own = document[:, :, None] == document[:, None]
    seen = (at[:, None] >= at) & (own | (document == 0)[:, :, None])
    start = torch.where((document != 0)[:, :, None], own.int().argmax(2, keepdim=True), 0)
    near = seen & ((at[:, None] - at < c.window) | ((at - start >= 0) & (at - start < c.sink)))
    group = c.q_heads // c.kv_heads

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        local = c.local_in(layer) if mapped else []
        mask = torch.stack([near if h in local else seen for h in range(c.kv_heads)], 1).repeat_interleave(group, 1)
        q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return attention
