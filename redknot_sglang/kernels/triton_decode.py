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

from .triton_extend import attend_keys, load_pages

_KEYS = 64
# Splits merged at the end of a row: more would cost the merge more than the GPU still gains in parallelism.
MAX_SPLITS = 64


def splits_for(bs: int, heads: int, max_pages: int, device: torch.device) -> int:
    """Splits per row that fill the device twice, and none shorter than one step."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    wanted = triton.cdiv(2 * processors, max(1, bs * heads))
    return max(1, min(wanted, MAX_SPLITS, triton.cdiv(max_pages, _KEYS)))


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
    logit_cap: float,
) -> Tensor:
    """Attention [B, G * n, D] of q [B, G * n, D] over the pool k, v [slots, n, D].

    Request i reads the first ``min(seq_lens[i], max_pages)`` entries of ``slots`` (int32) from
    ``slot_rows[i] * slot_stride`` on, with slot_rows None from ``i * slot_stride`` on.
    """
    bs, n_q, dim = q.shape
    heads = k.shape[1]
    group = n_q // heads
    out = torch.empty((bs, n_q, dim), dtype=q.dtype, device=q.device)
    block_d = triton.next_power_of_2(dim)
    parts = torch.empty((bs, n_q, splits, dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((bs, n_q, splits), dtype=torch.float32, device=q.device)
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
        logit_cap,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        TABLE=slot_rows is None,
        CAPPED=logit_cap != 0.0,
        GROUP=group,
        PACKED=max(16, triton.next_power_of_2(group)),
        KEYS=_KEYS if dim <= 128 else _KEYS // 2,
        DIM=dim,
        BLOCK_D=block_d,
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2 if q.dtype == torch.float32 else 3,
    )
    _merge_kernel[(bs, n_q)](parts, lse, out, splits, BLOCK_S=triton.next_power_of_2(splits), DIM=dim, BLOCK_D=block_d)
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
    logit_cap,
    q_row,
    q_head,
    k_slot,
    k_head,
    v_slot,
    v_head,
    TABLE: tl.constexpr,
    CAPPED: tl.constexpr,
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
        key = load_pages(k, pages, entry, listed, head, k_slot, k_head, DIM, BLOCK_D)
        value = load_pages(v, pages, entry, listed, head, v_slot, v_head, DIM, BLOCK_D)
        acc, top, total = attend_keys(
            acc, top, total, query, key, value, listed[None, :], scale, logit_cap, CAPPED, PRECISION
        )
    some = total > 0.0
    part = (request.to(tl.int64) * tl.num_programs(1) * GROUP + q_heads) * splits + split
    result = acc / tl.where(some, total, 1.0)[:, None]
    tl.store(parts + (part * DIM)[:, None] + dims[None, :], result, mask=inside)
    weight = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(lse + part, weight, mask=live)


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(parts, lse, out, splits, BLOCK_S: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    split, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    weight = tl.load(lse + row * splits + split, mask=split < splits, other=float("-inf"))
    # The first split holds at least the row's own token, so the maximum is finite.
    weight = tl.exp2(weight - tl.max(weight, axis=0))
    inside = (split < splits)[:, None] & (dims < DIM)[None, :]
    part = tl.load(parts + (row * splits + split)[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out + row * DIM + dims, result.to(out.dtype.element_ty), mask=dims < DIM)
