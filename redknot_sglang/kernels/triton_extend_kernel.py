# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Fused extend in Triton: causal attention of a class over its pages, sinks and window included.

One program takes an item, rows of a tile and a stretch of their keys (``extend_work``), and one KV head. The query
heads of the group are packed into the tile's rows, so a key is loaded once for all of them. Every row knows its
position; a key counts by position alone. Tiles whose keys are split are merged by log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import HeadClass
from .device_work import DeviceWork, Tiling
from .extend_work import Item
from .triton_attend import attend_keys, load_pages, store_part
from .triton_merge import merge_listed, workspace

_ITEM_FIELDS = tl.constexpr(len(Item._fields))


def extend(
    head_class: HeadClass,
    work: DeviceWork,
    tiling: Tiling,
    slots: Tensor,
    slot_starts: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    sink: int,
    scale: float,
    v_scale: float = 1.0,
) -> Tensor:
    """Attention of a batch in one class. Where tiles are split, memory for their parts is allocated for the call.

    head_class: the class, which says what a row sees.
    work: of the batch; for the local class, with whole tiles only.
    tiling: of the launch.
    slots: int32, page lists: all pages for the global class, those of ``page_list.near_pages`` for the local one.
    slot_starts: int64 [B], where each request's list begins in ``slots``.
    q: [N, G * n, D], rows and heads of any stride.
    k: [slots, n, D], the keys of the pool.
    v: [slots, n, D], the values of the pool.
    window: positions that a local row sees up to and including its own.
    sink: first positions that a local row sees besides.
    scale: logits are ``scale * q.k``; positive.
    v_scale: v times this are the values.
    Returns [N, G * n, D] in q's dtype.
    """
    n_rows, n_q, dim = q.shape
    heads = k.shape[1]
    tile_rows = tiling.packed // (n_q // heads)
    # No item writes the rows behind a recorded batch's; zeros keep NaN out of what follows.
    make = torch.zeros if work.recorded else torch.empty
    out = make((n_rows, n_q, dim), dtype=q.dtype, device=q.device)
    parts, lse = workspace(work.parts * tile_rows, n_q, dim, q.device)
    _extend_kernel[(len(work.items) * heads,)](
        q,
        k,
        v,
        out,
        parts,
        lse,
        slots,
        slot_starts,
        work.items,
        work.items if work.positions is None else work.positions,
        work.prefix_lens,
        heads,
        window,
        sink,
        scale,
        v_scale,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        out.stride(0),
        out.stride(1),
        LOCAL=head_class == "local",
        SCATTERED=work.positions is not None,
        GROUP=n_q // heads,
        ROWS=tile_rows,
        PACKED=tiling.packed,
        KEYS=tiling.keys,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    if work.parts:
        merge_listed(parts, lse, out, work.merges, tile_rows, work.most)
    return out


@triton.jit(do_not_specialize=["heads", "window", "sink"])
def _extend_kernel(
    q,
    k,
    v,
    out,
    parts,
    lse,
    slots,
    slot_starts,
    items,
    positions,
    prefix_lens,
    heads,
    window,
    sink,
    scale,
    v_scale,
    q_row,
    q_head,
    k_slot,
    k_head,
    v_slot,
    v_head,
    out_row,
    out_head,
    LOCAL: tl.constexpr,
    SCATTERED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PACKED: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Heads of one item run side by side: they read neighbouring bytes of the same slots.
    item, head = items + tl.program_id(0) // heads * _ITEM_FIELDS, tl.program_id(0) % heads
    request, first_row, n_rows = tl.load(item), tl.load(item + 1).to(tl.int64), tl.load(item + 2)
    lowest, first, end = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    pages = slots + tl.load(slot_starts + request).to(tl.int64)
    k += head * k_head
    v += head * v_head

    packed = tl.arange(0, PACKED)
    in_tile = packed // GROUP
    live = in_tile < n_rows
    at_row = first_row + in_tile
    if SCATTERED:
        position = tl.load(positions + at_row, mask=live, other=0)
    else:
        position = lowest + in_tile
    dims = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (dims < DIM)[None, :]
    q_heads = head * GROUP + packed % GROUP
    query = tl.load(q + (at_row * q_row + q_heads * q_head)[:, None] + dims[None, :], mask=inside, other=0.0)

    acc = tl.zeros([PACKED, BLOCK_D], tl.float32)
    top = tl.full([PACKED], float("-inf"), tl.float32)
    total = tl.zeros([PACKED], tl.float32)
    skipped = 0
    if LOCAL:
        prefix = tl.load(prefix_lens + request).to(tl.int32)
        first = tl.maximum(0, lowest - window + 1)
        skipped = tl.maximum(0, tl.maximum(0, prefix - window + 1) - sink)
        ahead = tl.minimum(sink, first)
        for start in range(0, ahead, KEYS):
            entry = start + tl.arange(0, KEYS)
            listed = entry < ahead
            key, value = load_pages(k, v, k_slot, v_slot, pages + entry, listed, True, DIM, BLOCK_D)
            acc, top, total = attend_keys(acc, top, total, query, key, value, listed[None, :], scale, True, PRECISION)
    else:
        # Blocks that end at or before the lowest row's own key: every row sees all of them.
        common = tl.maximum(first, tl.minimum(end, (lowest + 1) // KEYS * KEYS))
        for start in range(first, common, KEYS):
            entry = start + tl.arange(0, KEYS)
            key, value = load_pages(k, v, k_slot, v_slot, pages + entry, None, False, DIM, BLOCK_D)
            acc, top, total = attend_keys(acc, top, total, query, key, value, None, scale, False, PRECISION)
        first = common
    for start in range(first, end, KEYS):
        at = start + tl.arange(0, KEYS)
        listed = at < end
        seen = at[None, :] <= position[:, None]
        entry = at
        if LOCAL:
            seen = seen & ((at[None, :] > position[:, None] - window) | (at < sink)[None, :])
            entry = tl.where(at < sink, at, at - skipped)
        key, value = load_pages(k, v, k_slot, v_slot, pages + entry, listed, True, DIM, BLOCK_D)
        acc, top, total = attend_keys(
            acc, top, total, query, key, value, seen & listed[None, :], scale, True, PRECISION
        )
    if not LOCAL:
        part = tl.load(item + 6)
        if part >= 0:
            at_part = (part.to(tl.int64) * ROWS + in_tile) * (heads * GROUP) + q_heads
            store_part(parts, lse, at_part, acc, top, total, v_scale, live, inside, DIM, BLOCK_D)
            return
    result = acc / tl.where(live, total, 1.0)[:, None] * v_scale
    out_at = out + (at_row * out_row + q_heads * out_head)[:, None] + dims[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)
