# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Relocation of all layers of a head class in one launch; bound by the copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .relocate import KVLayers

_ROWS = 8


@triton.jit
def _relocate_kernel(
    addresses,
    like,
    source,
    target,
    cos,
    sin,
    n_rows,
    n_layers,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    NEOX: tl.constexpr,
    ROWS: tl.constexpr,
):
    layer = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    pointer = tl.pointer_type(like.dtype.element_ty)
    k = tl.load(addresses + layer).to(pointer)
    v = tl.load(addresses + n_layers + layer).to(pointer)
    heads = tl.load(addresses + 2 * n_layers + layer)
    old = tl.load(source + row, mask=live, other=0) * heads
    new = tl.load(target + row, mask=live, other=0) * heads

    pair = tl.arange(0, HALF_BLOCK)
    first = pair if NEOX else 2 * pair
    second = pair + HALF if NEOX else 2 * pair + 1
    turned = live[:, None] & (pair < HALF)[None, :]
    angle = row[:, None] * HALF + pair[None, :]
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    dim = tl.arange(0, HEAD_BLOCK)
    whole = live[:, None] & (dim < HEAD_DIM)[None, :]
    rest = whole & (dim >= 2 * HALF)[None, :]

    for head in range(heads):
        here = ((old + head) * HEAD_DIM)[:, None]
        there = ((new + head) * HEAD_DIM)[:, None]
        tl.store(v + there + dim[None, :], tl.load(v + here + dim[None, :], mask=whole), mask=whole)
        x = tl.load(k + here + first[None, :], mask=turned).to(tl.float32)
        y = tl.load(k + here + second[None, :], mask=turned).to(tl.float32)
        tl.store(k + there + first[None, :], (x * c - y * s).to(like.dtype.element_ty), mask=turned)
        tl.store(k + there + second[None, :], (y * c + x * s).to(like.dtype.element_ty), mask=turned)
        if HEAD_DIM > 2 * HALF:
            tl.store(k + there + dim[None, :], tl.load(k + here + dim[None, :], mask=rest), mask=rest)


def launch_relocate(layers: KVLayers, source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> None:
    """`relocate.relocate` by one kernel; same arguments, on the device. n must not be 0."""
    addresses, like = layers.addresses, layers.k[0]
    n_layers, half, head_dim = addresses.shape[1], cos.shape[1], like.shape[2]
    if n_layers == 0:
        return
    _relocate_kernel[(triton.cdiv(len(source), _ROWS), n_layers)](
        addresses,
        like,
        source.to(torch.int64),
        target.to(torch.int64),
        cos.contiguous(),
        sin.contiguous(),
        len(source),
        n_layers,
        HEAD_DIM=head_dim,
        HEAD_BLOCK=triton.next_power_of_2(head_dim),
        HALF=half,
        HALF_BLOCK=triton.next_power_of_2(half),
        NEOX=is_neox,
        ROWS=_ROWS,
    )
