# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Fused extend in Triton: causal attention of a class over its pages, sinks and window included.

One program takes a tile of rows and one KV head. The query heads of the group are packed into the tile's
rows, so a key is loaded once for all of them. Every row knows its position; a key counts by position alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import ExtendBatch, HeadClass, ScatteredBatch


@dataclass(frozen=True)
class Tiling:
    """The launch shape of a head dimension and dtype: packed rows and keys per step, warps, stages."""

    packed: int
    keys: int
    warps: int
    stages: int

    @classmethod
    def of(cls, head_dim: int, dtype: torch.dtype) -> Tiling:
        """Sized so that the tiles of q, k and v fit a Hopper or Ampere SM."""
        if dtype == torch.float32:
            return cls(32, 32, 4, 1) if head_dim > 64 else cls(64, 32, 4, 2)
        if head_dim > 128:
            return cls(64, 32, 8, 2)
        return cls(128, 64, 8, 3)


@dataclass(frozen=True)
class ExtendPlan:
    """Tiles of all requests: ``tile_requests``, ``tile_rows`` int32 [T], the first row within its request.

    ``positions`` int32 [N] where rows are scattered, else None.
    """

    qo_starts: Tensor
    qo_lens: Tensor
    positions: Tensor | None
    prefix_lens: Tensor
    tile_requests: Tensor
    tile_rows: Tensor
    rows_per_tile: int

    @classmethod
    def of(cls, batch: ExtendBatch, rows_per_tile: int) -> ExtendPlan:
        """Made on the device from the device's lengths; the host's lengths only size it."""
        device = batch.seq_lens.device
        positions = batch.positions if isinstance(batch, ScatteredBatch) else None
        if positions is not None:
            qo_lens = torch.tensor(batch.qo_lens, dtype=torch.int32).to(device, non_blocking=True)
        else:
            qo_lens = batch.seq_lens - batch.prefix_lens
        tiles = (qo_lens + (rows_per_tile - 1)) // rows_per_tile
        total = sum(-(-n // rows_per_tile) for n in batch.qo_lens)
        requests = torch.arange(len(tiles), dtype=torch.int32, device=device)
        tile_requests = torch.repeat_interleave(requests, tiles, output_size=total)
        ends = tiles.cumsum(0)
        # The last tiles of a request read the most keys: started first, they do not end as stragglers.
        behind = ends[tile_requests] - 1 - torch.arange(total, device=device)
        tile_rows = (behind * rows_per_tile).to(torch.int32)
        qo_starts = qo_lens.cumsum(0) - qo_lens
        prefixes = batch.prefix_lens
        return cls(qo_starts, qo_lens, positions, prefixes, tile_requests, tile_rows, rows_per_tile)


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
    logit_cap: float,
) -> Tensor:
    """Attention [N, G * n, D] of q [N, G * n, D] over the pool k, v [slots, n, D].

    Request i's pages are ``slots[slot_starts[i]:]`` (int32; int64 [B]): all of them for the global class,
    those of ``page_list.near_pages`` for the local one.
    """
    n_rows, n_q, dim = q.shape
    heads = k.shape[1]
    out = torch.empty((n_rows, n_q, dim), dtype=q.dtype, device=q.device)
    _extend_kernel[(len(plan.tile_requests), heads)](
        q,
        k,
        v,
        out,
        slots,
        slot_starts,
        plan.qo_starts,
        plan.qo_lens,
        plan.qo_lens if plan.positions is None else plan.positions,
        plan.prefix_lens,
        plan.tile_requests,
        plan.tile_rows,
        window,
        sink,
        scale,
        logit_cap,
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
        CAPPED=logit_cap != 0.0,
        GROUP=n_q // heads,
        ROWS=plan.rows_per_tile,
        PACKED=tiling.packed,
        KEYS=tiling.keys,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out


@triton.jit
def soft_cap(logits, cap):
    """cap * tanh(logits / cap); tanh through the sigmoid, which every backend of Triton has."""
    return cap * (2.0 * tl.sigmoid(2.0 * logits / cap) - 1.0)


@triton.jit
def load_pages(pool, pages, entry, listed, head, slot_stride, head_stride, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [KEYS, BLOCK_D] of one head, 0 where not listed: garbage times weight 0 could be NaN."""
    dims = tl.arange(0, BLOCK_D)
    slot = tl.load(pages + entry, mask=listed, other=0).to(tl.int64)
    at = pool + (slot * slot_stride + head * head_stride)[:, None] + dims[None, :]
    return tl.load(at, mask=listed[:, None] & (dims < DIM)[None, :], other=0.0)


@triton.jit
def attend_keys(acc, top, total, query, key, value, seen, scale, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the running softmax, in base 2: keys [KEYS, D] into rows [PACKED, D], where seen."""
    logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if CAPPED:
        logits = soft_cap(logits, cap)
    logits = tl.where(seen, logits * 1.4426950408889634, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, axis=1))
    # A row that has seen nothing yet keeps -inf; subtracting 0 instead leaves its weights at 0.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(logits - base[:, None])
    kept = tl.exp2(top - base)
    total = total * kept + tl.sum(weights, axis=1)
    acc = acc * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return acc, new_top, total


@triton.jit(do_not_specialize=["window", "sink"])
def _extend_kernel(
    q,
    k,
    v,
    out,
    slots,
    slot_starts,
    qo_starts,
    qo_lens,
    positions,
    prefix_lens,
    tile_requests,
    tile_rows,
    window,
    sink,
    scale,
    logit_cap,
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
    CAPPED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PACKED: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    request = tl.load(tile_requests + tile)
    first_row = tl.load(tile_rows + tile)
    prefix = tl.load(prefix_lens + request).to(tl.int32)
    n_rows = tl.load(qo_lens + request).to(tl.int32)
    pages = slots + tl.load(slot_starts + request).to(tl.int64)

    packed = tl.arange(0, PACKED)
    row = first_row + packed // GROUP
    live = (packed < ROWS * GROUP) & (row < n_rows)
    own_rows = tl.load(qo_starts + request).to(tl.int64)
    last_row = tl.minimum(first_row + ROWS, n_rows) - 1
    if SCATTERED:
        position = tl.load(positions + own_rows + row, mask=live, other=0)
        lowest = tl.load(positions + own_rows + first_row)
        end = tl.load(positions + own_rows + last_row) + 1
    else:
        position = prefix + row
        lowest = prefix + first_row
        end = prefix + last_row + 1
    dims = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (dims < DIM)[None, :]
    q_heads = head * GROUP + packed % GROUP
    at_row = own_rows + row
    query = tl.load(q + (at_row * q_row + q_heads * q_head)[:, None] + dims[None, :], mask=inside, other=0.0)

    acc = tl.zeros([PACKED, BLOCK_D], tl.float32)
    top = tl.full([PACKED], float("-inf"), tl.float32)
    total = tl.zeros([PACKED], tl.float32)
    first_key, skipped = 0, 0
    if LOCAL:
        first_key = tl.maximum(0, lowest - window + 1)
        skipped = tl.maximum(0, tl.maximum(0, prefix - window + 1) - sink)
        ahead = tl.minimum(sink, first_key)
        for start in range(0, ahead, KEYS):
            entry = start + tl.arange(0, KEYS)
            listed = entry < ahead
            key = load_pages(k, pages, entry, listed, head, k_slot, k_head, DIM, BLOCK_D)
            value = load_pages(v, pages, entry, listed, head, v_slot, v_head, DIM, BLOCK_D)
            acc, top, total = attend_keys(
                acc, top, total, query, key, value, listed[None, :], scale, logit_cap, CAPPED, PRECISION
            )
    for start in range(first_key, end, KEYS):
        at = start + tl.arange(0, KEYS)
        listed = at < end
        seen = at[None, :] <= position[:, None]
        entry = at
        if LOCAL:
            seen = seen & ((at[None, :] > position[:, None] - window) | (at < sink)[None, :])
            entry = tl.where(at < sink, at, at - skipped)
        key = load_pages(k, pages, entry, listed, head, k_slot, k_head, DIM, BLOCK_D)
        value = load_pages(v, pages, entry, listed, head, v_slot, v_head, DIM, BLOCK_D)
        acc, top, total = attend_keys(
            acc, top, total, query, key, value, seen & listed[None, :], scale, logit_cap, CAPPED, PRECISION
        )
    result = acc / tl.where(live, total, 1.0)[:, None]
    out_at = out + (at_row * out_row + q_heads * out_head)[:, None] + dims[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=inside)
