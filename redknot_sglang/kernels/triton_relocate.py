# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The kernels behind ``relocate``: all layers of a head class in one launch, as fast as memory can be copied."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kv_layers import KVLayers
from .stored import largest

# (row, head) pairs of a program: enough to keep the memory busy, also where layers have only one head of the class.
_PAIRS = 32
_TURN_ROWS = 16


@triton.jit(do_not_specialize=["n_rows", "n_layers"])
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
    PAIRS: tl.constexpr,
    LIMIT: tl.constexpr,
):
    layer = tl.program_id(1)
    pointer = tl.pointer_type(like.dtype.element_ty)
    # Without the hint an address that was loaded is taken for unaligned, and rows move two bytes at a time.
    k = tl.multiple_of(tl.load(addresses + layer).to(pointer), 16)
    v = tl.multiple_of(tl.load(addresses + n_layers + layer).to(pointer), 16)
    heads = tl.load(addresses + 2 * n_layers + layer).to(tl.int32)
    if tl.program_id(0) * PAIRS >= n_rows * heads:
        return
    moved = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    row, head = moved // heads, moved % heads
    live = row < n_rows
    here = ((tl.load(source + row, mask=live, other=0) * heads + head) * HEAD_DIM)[:, None]
    there = ((tl.load(target + row, mask=live, other=0) * heads + head) * HEAD_DIM)[:, None]

    pair = tl.arange(0, HALF_BLOCK)
    first = (pair if NEOX else 2 * pair)[None, :]
    second = (pair + HALF if NEOX else 2 * pair + 1)[None, :]
    turned = live[:, None] & (pair < HALF)[None, :]
    dim = tl.arange(0, HEAD_BLOCK)[None, :]
    whole = live[:, None] & (dim < HEAD_DIM)

    # All loads ahead of the stores: a program has one turn to keep the memory busy.
    value = tl.load(v + here + dim, mask=whole)
    x = tl.load(k + here + first, mask=turned).to(tl.float32)
    y = tl.load(k + here + second, mask=turned).to(tl.float32)
    angle = row[:, None] * HALF + pair[None, :]
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    tl.store(v + there + dim, value, mask=whole)
    turned_x, turned_y = x * c - y * s, y * c + x * s
    if LIMIT > 0:
        # A pair of numbers near the largest 8-bit float may turn into one beyond it.
        turned_x = tl.clamp(turned_x, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        turned_y = tl.clamp(turned_y, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    tl.store(k + there + first, turned_x.to(like.dtype.element_ty), mask=turned)
    tl.store(k + there + second, turned_y.to(like.dtype.element_ty), mask=turned)
    if HEAD_DIM > 2 * HALF:
        rest = whole & (dim >= 2 * HALF)
        tl.store(k + there + dim, tl.load(k + here + dim, mask=rest), mask=rest)


def launch_relocate(layers: KVLayers, source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> None:
    """`relocate.relocate` by one kernel; same arguments, on the device. There must be at least one row."""
    addresses, like = layers.addresses, layers.k[0]
    n_layers, half, head_dim = addresses.shape[1], cos.shape[1], like.shape[2]
    if n_layers == 0:
        return
    _relocate_kernel[(triton.cdiv(len(source) * layers.most_heads, _PAIRS), n_layers)](
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
        PAIRS=_PAIRS,
        LIMIT=largest(like.dtype),
    )


@triton.jit(do_not_specialize=["n_rows"])
def _turn_kernel(
    table, origin, position, cos, sin, n_rows, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    here = tl.load(origin + row, mask=live, other=0)
    there = tl.load(position + row, mask=live, other=0)
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    inside = live[:, None] & (pair < HALF)
    at0 = table + here[:, None] * (2 * HALF) + pair
    at1 = table + there[:, None] * (2 * HALF) + pair
    cos0 = tl.load(at0, mask=inside, other=1.0).to(tl.float32)
    sin0 = tl.load(at0 + HALF, mask=inside, other=0.0).to(tl.float32)
    cos1 = tl.load(at1, mask=inside, other=1.0).to(tl.float32)
    sin1 = tl.load(at1 + HALF, mask=inside, other=0.0).to(tl.float32)
    c, s = cos1 * cos0 + sin1 * sin0, sin1 * cos0 - cos1 * sin0
    norm = tl.sqrt_rn(c * c + s * s)
    same = (here == there)[:, None]
    to = row[:, None] * HALF + pair
    tl.store(cos + to, tl.where(same, 1.0, c / norm), mask=inside)
    tl.store(sin + to, tl.where(same, 0.0, s / norm), mask=inside)


def launch_turn(table: Tensor, origin: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """`relocate.Rotation.turn` by one kernel; same arguments, on the device; table contiguous."""
    rows, half = len(origin), table.shape[1] // 2
    cos, sin = torch.empty((2, rows, half), dtype=torch.float32, device=table.device).unbind()
    if rows:
        _turn_kernel[(triton.cdiv(rows, _TURN_ROWS),)](
            table,
            origin.to(torch.int64),
            position.to(torch.int64),
            cos,
            sin,
            rows,
            HALF=half,
            HALF_BLOCK=triton.next_power_of_2(half),
            ROWS=_TURN_ROWS,
        )
    return cos, sin
