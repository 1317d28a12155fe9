# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Fused extend in Triton: causal attention of a class over its pages, sinks and window included.

One program takes an item, rows of a tile and a stretch of their keys (``extend_work``), and one KV head. The query
heads of the group are packed into the tile's rows, so a key is loaded once for all of them. Every row knows its
position; a key counts by position alone. Tiles whose keys are split are merged by log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import ExtendBatch, HeadClass, ScatteredBatch
from .extend_work import Item, Work
from .host_copy import to_device
from .triton_attend import attend_keys, load_pages, store_part
from .triton_merge import merge_listed, workspace

_ITEM_FIELDS = tl.constexpr(len(Item._fields))


@dataclass(frozen=True)
class Tiling:
    """The launch shape of a head dimension and dtype: packed rows and keys per step, warps, stages."""

    packed: int
    keys: int
    warps: int
    stages: int

    @classmethod
    def of(cls, head_dim: int, dtype: torch.dtype) -> Tiling:
        """Sized so that the tiles of q, k and v fit a Hopper, Ampere or Ada SM.

        Triton divides the stages among two loads in a row, of page ids and of the pages. With 3 the pages of a step
        are asked for when the step before has done its softmax; with 5, a whole step earlier.
        """
        if dtype == torch.float32:
            return cls(32, 32, 4, 1) if head_dim > 64 else cls(64, 32, 4, 2)
        if head_dim > 128:
            return cls(64, 32, 8, 3)
        return cls(128, 64, 8, 5)


@dataclass(frozen=True)
class ExtendPlan:
    """Work on the device: ``items`` int32 [I, 7] and ``merges`` int32 [M, 4], with the fields of ``extend_work``.

    ``positions`` int32 [N] where rows are scattered, else None. ``parts`` of at most ``most`` a tile are merged.
    ``recorded``: a graph reads it, whose q may have more rows than the batch.
    """

    items: Tensor
    merges: Tensor
    parts: int
    most: int
    positions: Tensor | None
    prefix_lens: Tensor
    recorded: bool = False

    @classmethod
    def of(cls, work: Work, batch: ExtendBatch) -> ExtendPlan:
        """Copies the work to the device; nothing waits."""
        device = batch.seq_lens.device
        items, merges = (to_device(rows, device, torch.int32) for rows in (work.items, work.merges))
        most = max((merge.parts for merge in work.merges), default=0)
        positions = batch.positions if isinstance(batch, ScatteredBatch) else None
        return cls(items, merges, work.parts, most, positions, batch.prefix_lens)


def extend(
    head_class: HeadClass,
    plan: ExtendPlan,
    tiling: Tiling,
    slots: Tensor,
    slot_starts: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    sink: int,
    scale: float,
) -> Tensor:
    """Attention [N, G * n, D] of q [N, G * n, D] over the pool k, v [slots, n, D].

    Request i's pages are ``slots[slot_starts[i]:]`` (int32; int64 [B]): all of them for the global class,
    those of ``page_list.near_pages`` for the local one, whose plan has whole tiles only. Where tiles are split,
    ``plan.parts`` times the tile's query and head rows of D + 1 floats are allocated for the call.
    """
    n_rows, n_q, dim = q.shape
    heads = k.shape[1]
    tile_rows = tiling.packed // (n_q // heads)
    # Rows that no item has must be numbers all the same.
    make = torch.zeros if plan.recorded else torch.empty
    out = make((n_rows, n_q, dim), dtype=q.dtype, device=q.device)
    parts, lse = workspace(plan.parts * tile_rows, n_q, dim, q.device)
    _extend_kernel[(len(plan.items) * heads,)](
        q,
        k,
        v,
        out,
        parts,
        lse,
        slots,
        slot_starts,
        plan.items,
        plan.items if plan.positions is None else plan.positions,
        plan.prefix_lens,
        heads,
        window,
        sink,
        scale,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        out.stride(0),
        out.stride(1),
        LOCAL=head_class == "local",
        SCATTERED=plan.positions is not None,
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
    if plan.parts:
        merge_listed(parts, lse, out, plan.merges, tile_rows, plan.most)
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
            store_part(parts, lse, at_part, acc, top, total, live, inside, DIM, BLOCK_D)
            return
    result = acc / tl.where(live, total, 1.0)[:, None]
    out_at = out + (at_row * out_row + q_heads * out_head)[:, None] + dims[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)
