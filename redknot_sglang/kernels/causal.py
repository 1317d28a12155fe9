# SPDX-License-Identifier: Apache-2.0
"""Causal attention of one sequence's last rows over all of it, outside any pool."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of the last R of N positions, each over all positions up to its own; R <= N.

    q: [R, G * n, D], queries of the last R positions.
    k: [N, n, D], keys of all positions.
    v: [N, n, D], values of all positions.
    scale: logits are ``scale * q.k``.
    Returns [R, G * n, D] in q's dtype.
    """
    rows, length, group = len(q), len(k), q.shape[1] // k.shape[1]
    keys, values = (x.transpose(0, 1).repeat_interleave(group, 0)[None] for x in (k, v))
    if q.is_cuda:
        mask = causal_lower_right(rows, length)
        out = scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, attn_mask=mask, scale=scale)
        return out[0].transpose(0, 1)
    # On the CPU only a square mask is known without being made, and skipping what it hides is worth more than the rows
    # that are added for it.
    square = torch.cat([q.new_zeros(length - rows, *q.shape[1:]), q]).transpose(0, 1)[None]
    out = scaled_dot_product_attention(square, keys, values, is_causal=True, scale=scale)
    return out[0].transpose(0, 1)[length - rows :]
