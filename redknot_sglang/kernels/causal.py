# SPDX-License-Identifier: Apache-2.0
"""Causal attention of one sequence's last rows over all of it, outside any pool."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

# Rows at a time where a mask has to be made.
_BLOCK = 512


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention [R, G * n, D] of q [R, G * n, D], the last R of N positions, over k, v [N, n, D]; R <= N."""
    rows, length, group = len(q), len(k), q.shape[1] // k.shape[1]
    queries = q.transpose(0, 1)[None]
    keys, values = (x.transpose(0, 1).repeat_interleave(group, 0)[None] for x in (k, v))
    if q.is_cuda:
        mask = causal_lower_right(rows, length)
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)[0].transpose(0, 1)
    out, at = torch.empty_like(q), torch.arange(length)
    for start in range(0, rows, _BLOCK):
        block, end = queries[:, :, start : start + _BLOCK], min(length, length - rows + start + _BLOCK)
        seen = at[:end] <= at[end - block.shape[2] : end, None]
        part = scaled_dot_product_attention(block, keys[:, :, :end], values[:, :, :end], attn_mask=seen, scale=scale)
        out[start : start + _BLOCK] = part[0].transpose(0, 1)
    return out
