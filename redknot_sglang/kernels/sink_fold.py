# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Sink fold: turns attention over the window alone into attention over sinks and window.

Window kernels know no sinks. But from a row's window output and its log-sum-exp, the sinks ahead of the
window can be added exactly: one pass over the output, a handful of keys per row. Sinks that a row's window
already holds are left out, so no row counts a key twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import ClassSpec, ExtendBatch
from .class_heads import Target
from .page_list import sink_pages, write_pages

_LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class SinksOfRows:
    """What folding needs to know of a batch: where its sinks are and which of them a row may see.

    sink_slots: int32 [B, S], the local slots of each request's sinks.
    row_requests: int32 [N], the request of each row; -1 for a row that belongs to none.
    row_positions: int32 [N], the position of each row.
    """

    sink_slots: Tensor
    row_requests: Tensor
    row_positions: Tensor

    @classmethod
    def of(cls, batch: ExtendBatch, spec: ClassSpec) -> SinksOfRows | None:
        """Of a batch of adjacent rows; None if no row has a sink ahead of its window. Made on the device, nothing
        waits.
        """
        if not spec.local_widths or spec.sink == 0 or max(batch.seq_lens_cpu) <= spec.window:
            return None
        bs, device = len(batch.seq_lens_cpu), batch.seq_lens.device
        # Shorter requests leave the dummy slot in their rest; no row of theirs folds it.
        sink_slots = torch.zeros((bs, spec.sink), dtype=torch.int32, device=device)
        requests = torch.arange(bs, dtype=torch.int32, device=device)
        write_pages(
            sink_pages(spec),
            sink_slots.view(-1),
            requests * spec.sink,
            batch.req_to_token,
            batch.req_pool_indices,
            batch.full_to_local,
            batch.prefix_lens,
            batch.seq_lens,
        )
        qo_lens = batch.seq_lens - batch.prefix_lens
        n_rows = batch.qo_indptr[-1]
        row_requests = torch.repeat_interleave(requests, qo_lens, output_size=n_rows)
        shift = batch.seq_lens - qo_lens.cumsum(0)
        row_positions = torch.arange(n_rows, device=device) + shift[row_requests]
        return cls(sink_slots, row_requests, row_positions.to(torch.int32))


def sink_fold(
    out: Tensor,
    lse: Tensor,
    lse_layout: Literal["heads_rows", "rows_heads"],
    lse_base: Literal["e", "2"],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: SinksOfRows,
    window: int,
    scale: float,
    target: Target | None = None,
    v_scale: float = 1.0,
) -> None:
    """Fold sinks into the window's result. Sink s is folded into a row at position p if s <= p - window.

    out: [N, G * n, D], the window's result, rows of any stride. Without a target it is folded in place; with one it
        stays as it is.
    lse: float32, the log-sum-exp of each row and query head over the window.
    lse_layout: ``lse`` is [G * n, N] ("heads_rows") or [N, G * n] ("rows_heads").
    lse_base: the base of its logarithm.
    q: [N, G * n, D], rows of any stride.
    k: [slots, n, D], keys of the local pool.
    v: [slots, n, D], values of the local pool.
    sinks: of the batch.
    window: positions in a row's window.
    scale: logits are ``scale * q.k``.
    target: where to write the folded result.
    v_scale: v times this are the values, as they are in ``out``.
    """
    n_rows, n_q, dim = q.shape
    heads = k.shape[1]
    by_head, by_row = (lse.stride(0), lse.stride(1)) if lse_layout == "heads_rows" else lse.stride()[::-1]
    group = n_q // heads
    rows = max(1, (64 if dim <= 128 else 32) // group)
    to = out if target is None else target.out
    _sink_fold_kernel[(triton.cdiv(n_rows, rows), heads)](
        out,
        lse,
        q,
        k,
        v,
        sinks.sink_slots,
        sinks.row_requests,
        sinks.row_positions,
        to,
        sinks.sink_slots if target is None else target.heads.kv,
        n_rows,
        window,
        scale,
        v_scale,
        out.stride(0),
        out.stride(1),
        to.stride(0),
        to.stride(1),
        by_row,
        by_head,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        sinks.sink_slots.stride(0),
        SINKS=sinks.sink_slots.shape[1],
        GROUP=group,
        ROWS=rows,
        PACKED=max(16, triton.next_power_of_2(rows * group)),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        BASE_2=lse_base == "2",
        IN_PLACE=target is None,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["n_rows", "window"])
def _sink_fold_kernel(
    out,
    lse,
    q,
    k,
    v,
    sink_slots,
    row_requests,
    row_positions,
    to,
    to_heads,
    n_rows,
    window,
    scale,
    v_scale,
    out_row,
    out_head,
    to_row,
    to_head,
    lse_row,
    lse_head,
    q_row,
    q_head,
    k_slot,
    k_head,
    v_slot,
    v_head,
    slots_request,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PACKED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BASE_2: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    head = tl.program_id(1)
    packed = tl.arange(0, PACKED)
    row = tl.program_id(0) * ROWS + packed // GROUP
    live = (packed < ROWS * GROUP) & (row < n_rows)
    q_heads = head * GROUP + packed % GROUP
    # The last sink that lies ahead of the row's window.
    last_sink = tl.load(row_positions + row, mask=live, other=0) - window
    if IN_PLACE:
        if tl.max(tl.where(live, last_sink, -1), axis=0) < 0:
            return
        live = live & (last_sink >= 0)
    request = tl.load(row_requests + row, mask=live, other=-1)
    live = live & (request >= 0)
    # Rows of a request follow each other, so a tile holds those of a range of requests, mostly of one.
    first = tl.min(tl.where(live, request, 0x7FFFFFFF), axis=0)
    last = tl.max(tl.where(live, request, -1), axis=0)
    dims = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (dims < DIM)[None, :]
    row = row.to(tl.int64)
    out_at = out + (row * out_row + q_heads * out_head)[:, None] + dims[None, :]
    if IN_PLACE:
        to_at = out_at
    else:
        to_q_heads = tl.load(to_heads + head) * GROUP + packed % GROUP
        to_at = to + (row * to_row + to_q_heads * to_head)[:, None] + dims[None, :]
    query = tl.load(q + (row * q_row + q_heads * q_head)[:, None] + dims[None, :], mask=inside, other=0.0)
    # Weights are relative to exp(top); the window's own output enters with the weight of its log-sum-exp.
    top = tl.load(lse + row * lse_row + q_heads * lse_head, mask=live, other=0.0)
    if BASE_2:
        top = top / _LOG2_E
    total = tl.full([PACKED], 1.0, tl.float32)
    result = tl.load(out_at, mask=inside, other=0.0).to(tl.float32)
    # A product on tensor cores has 16 keys at least, and a model rarely has more sinks.
    keys = tl.arange(0, 16)
    for at in range(first, last + 1):
        for start in tl.static_range(0, SINKS, 16):
            sinks = start + keys
            # The latest row of a tile sees the most sinks; what none of them sees may lie in a dead slot, where 0 * NaN
            # would still be NaN.
            seen = tl.max(tl.where(live & (request == at), last_sink, -1), axis=0)
            valid = (sinks < SINKS) & (sinks <= seen)
            slots = tl.load(sink_slots + at * slots_request + sinks, mask=valid, other=0).to(tl.int64)
            wanted = valid[:, None] & (dims < DIM)[None, :]
            key = tl.load(k + (slots * k_slot + head * k_head)[:, None] + dims[None, :], mask=wanted, other=0.0)
            value = tl.load(v + (slots * v_slot + head * v_head)[:, None] + dims[None, :], mask=wanted, other=0.0)
            # 8-bit floats are converted to the queries' dtype.
            key, value = key.to(query.dtype), value.to(query.dtype)
            logits = tl.dot(query, tl.trans(key)) * scale
            mine = (request == at)[:, None] & valid[None, :] & (sinks[None, :] <= last_sink[:, None])
            logits = tl.where(mine, logits, float("-inf"))
            new_top = tl.maximum(top, tl.max(logits, axis=1))
            kept, weights = tl.exp(top - new_top), tl.exp(logits - new_top[:, None])
            result = result * kept[:, None] + tl.dot(weights.to(value.dtype), value) * v_scale
            total = total * kept + tl.sum(weights, axis=1)
            top = new_top
    tl.store(to_at, (result / total[:, None]).to(out.dtype.element_ty), mask=inside)
