# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Fused decode in Triton: one row per request, its pages split over programs and merged by log-sum-exp.

For one row, sinks and window are nothing but a shorter page list, so both classes share one kernel without a
mask. Lengths are read on the device: a captured launch stays right when they change.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .extend_work import MAX_PARTS
from .triton_attend import attend_keys, load_pages, store_part
from .triton_merge import merge, processors_of, workspace

_KEYS = 64


def splits_for(bs: int, heads: int, max_pages: int, device: torch.device) -> int:
    """Parts to cut each row's pages into, so that there are two programs for each processor, none without a step's keys.

    bs: rows.
    heads: KV heads.
    max_pages: pages of the longest row.
    device: where they run.
    """
    wanted = triton.cdiv(2 * processors_of(device), max(1, bs * heads))
    return max(1, min(wanted, MAX_PARTS, triton.cdiv(max_pages, _KEYS)))


def decode(
    slots: Tensor,
    slot_rows: Tensor | None,
    slot_stride: int,
    seq_lens: Tensor,
    max_pages: int,
    splits: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    v_scale: float = 1.0,
) -> Tensor:
    """Attention of one row of each request, in one class.

    slots: int32, page lists. Request i's list begins at ``slot_rows[i] * slot_stride``.
    slot_rows: int [B]; None stands for 0, 1, 2 and so on.
    slot_stride: entries from one list's beginning to the next's.
    seq_lens: int [B], tokens of each request.
    max_pages: entries that a list has at most; of request i the first ``min(seq_lens[i], max_pages)`` are read.
    splits: parts that each list is cut into.
    q: [B, G * n, D], rows and heads of any stride.
    k: [slots, n, D], the keys of the pool.
    v: [slots, n, D], the values of the pool.
    scale: logits are ``scale * q.k``; positive.
    v_scale: v times this are the values.
    Returns [B, G * n, D] in q's dtype.
    """
    bs, n_q, dim = q.shape
    heads = k.shape[1]
    group = n_q // heads
    out = torch.empty((bs, n_q, dim), dtype=q.dtype, device=q.device)
    parts, lse = workspace(bs * splits, n_q, dim, q.device)
    _split_kernel[(bs, heads, splits)](
        q,
        k,
        v,
        parts,
        lse,
        slots,
        seq_lens if slot_rows is None else slot_rows,
        slot_stride,
        seq_lens,
        max_pages,
        scale,
        v_scale,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        TABLE=slot_rows is None,
        GROUP=group,
        PACKED=max(16, triton.next_power_of_2(group)),
        KEYS=_KEYS if dim <= 128 else _KEYS // 2,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2 if q.dtype == torch.float32 else 3,
    )
    merge(parts, lse, out, splits)
    return out


# Lengths and splits change with every batch: compiling for their values would stall requests.
@triton.jit(do_not_specialize=["max_pages"])
def _split_kernel(
    q,
    k,
    v,
    parts,
    lse,
    slots,
    slot_rows,
    slot_stride,
    seq_lens,
    max_pages,
    scale,
    v_scale,
    q_row,
    q_head,
    k_slot,
    k_head,
    v_slot,
    v_head,
    TABLE: tl.constexpr,
    GROUP: tl.constexpr,
    PACKED: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    request, head, split, splits = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    count = tl.minimum(tl.load(seq_lens + request).to(tl.int32), max_pages)
    share = tl.cdiv(tl.cdiv(count, splits), KEYS) * KEYS
    first = split * share
    end = tl.minimum(first + share, count)
    if TABLE:
        list_row = request.to(tl.int64)
    else:
        list_row = tl.load(slot_rows + request).to(tl.int64)
    pages = slots + list_row * slot_stride
    k += head * k_head
    v += head * v_head

    packed = tl.arange(0, PACKED)
    live = packed < GROUP
    dims = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (dims < DIM)[None, :]
    q_heads = head * GROUP + packed
    at = q + request.to(tl.int64) * q_row + (q_heads * q_head)[:, None] + dims[None, :]
    query = tl.load(at, mask=inside, other=0.0)
    acc = tl.zeros([PACKED, BLOCK_D], tl.float32)
    top = tl.full([PACKED], float("-inf"), tl.float32)
    total = tl.zeros([PACKED], tl.float32)
    for start in range(first, end, KEYS):
        entry = start + tl.arange(0, KEYS)
        listed = entry < end
        key, value = load_pages(k, v, k_slot, v_slot, pages + entry, listed, True, DIM, BLOCK_D)
        acc, top, total = attend_keys(acc, top, total, query, key, value, listed[None, :], scale, True, PRECISION)
    part = (request.to(tl.int64) * splits + split) * (tl.num_programs(1) * GROUP) + q_heads
    store_part(parts, lse, part, acc, top, total, v_scale, live, inside, DIM, BLOCK_D)
