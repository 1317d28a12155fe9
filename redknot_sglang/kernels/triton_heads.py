# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The kernels behind ``move_heads``: they part a layer's heads by class and put them together again.

They only move data. With torch's own operations a layer would need about nine launches, and for a few rows each of
those takes longer on the host than on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .class_heads import ClassHeads, Split
from .stored import largest

# Rows of a program; a row of one head is 256 bytes at head_dim 128 in bf16.
_ROWS = 16


def launch_split(
    split: Split,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    slots: Tensor,
    local_slots: Tensor,
    global_kv: tuple[Tensor, Tensor],
    local_kv: tuple[Tensor, Tensor],
    scales: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """`move_heads.split_heads` by one kernel; same arguments, on the device."""
    n_rows, _, dim = q.shape
    classes = split.global_heads, split.local_heads
    parts, gathers = [], []
    for heads in classes:
        gather = bool(heads.numbers) and not heads.adjacent
        gathers.append(gather)
        if gather:
            parts.append(torch.empty((n_rows, len(heads.query), dim), dtype=q.dtype, device=q.device))
        else:
            parts.append(q[:, heads.queries] if heads.numbers else q[:, :0])
    store = k is not None and v is not None
    if (store or any(gathers)) and n_rows:
        k, v = (k, v) if store else (q, q)
        assert k is not None and v is not None
        _split_kernel[(triton.cdiv(n_rows, _ROWS), len(split.place))](
            q,
            k,
            v,
            split.place,
            slots,
            local_slots,
            *global_kv,
            *local_kv,
            *parts,
            n_rows,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            len(classes[0].numbers),
            len(classes[1].numbers),
            *scales,
            STORE=store,
            LIMIT=largest(global_kv[0].dtype),
            GATHER_GLOBAL=gathers[0],
            GATHER_LOCAL=gathers[1],
            GROUP=split.global_heads.group,
            DIM=dim,
            BLOCK_D=triton.next_power_of_2(dim),
            ROWS=_ROWS,
        )
    return parts[0], parts[1]


@triton.jit
def fitting(rows, scale, LIMIT: tl.constexpr):
    """Keys or values as `stored.stored` prepares them for 8-bit floats up to LIMIT: divided by the scale, and no larger; float32."""
    divided = tl.div_rn(rows.to(tl.float32), scale).to(rows.dtype).to(tl.float32)
    return tl.clamp(divided, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _part(
    q, k, v, row, live, inside, dims, head, index, n, slots, pool_k, pool_v, part,
    q_row, q_head, k_row, k_head, v_row, v_head, k_scale, v_scale,
    STORE: tl.constexpr, LIMIT: tl.constexpr, GATHER: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    if STORE:
        slot = tl.load(slots + row, mask=live, other=0).to(tl.int64)
        to = ((slot * n + index) * DIM)[:, None] + dims[None, :]
        key = tl.load(k + (row * k_row + head * k_head)[:, None] + dims[None, :], mask=inside, other=0.0)
        value = tl.load(v + (row * v_row + head * v_head)[:, None] + dims[None, :], mask=inside, other=0.0)
        if LIMIT > 0:
            key, value = fitting(key, k_scale, LIMIT), fitting(value, v_scale, LIMIT)
        tl.store(pool_k + to, key.to(pool_k.dtype.element_ty), mask=inside)
        tl.store(pool_v + to, value.to(pool_v.dtype.element_ty), mask=inside)
    if GATHER:
        for member in tl.static_range(GROUP):
            query = tl.load(
                q + (row * q_row + (head * GROUP + member) * q_head)[:, None] + dims[None, :], mask=inside, other=0.0
            )
            to = ((row * n + index) * GROUP + member) * DIM
            tl.store(part + to[:, None] + dims[None, :], query, mask=inside)


@triton.jit(do_not_specialize=["n_rows", "n_global", "n_local"])
def _split_kernel(
    q,
    k,
    v,
    place,
    slots,
    local_slots,
    k_global,
    v_global,
    k_local,
    v_local,
    q_global,
    q_local,
    n_rows,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    n_global,
    n_local,
    k_scale,
    v_scale,
    STORE: tl.constexpr,
    LIMIT: tl.constexpr,
    GATHER_GLOBAL: tl.constexpr,
    GATHER_LOCAL: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(1)
    at = tl.load(place + head)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < n_rows
    dims = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (dims < DIM)[None, :]
    if at >= 0:
        _part(
            q, k, v, row, live, inside, dims, head, at, n_global, slots, k_global, v_global, q_global,
            q_row, q_head, k_row, k_head, v_row, v_head, k_scale, v_scale, STORE, LIMIT, GATHER_GLOBAL, GROUP, DIM,
        )  # fmt: skip
    else:
        _part(
            q, k, v, row, live, inside, dims, head, -1 - at, n_local, local_slots, k_local, v_local, q_local,
            q_row, q_head, k_row, k_head, v_row, v_head, k_scale, v_scale, STORE, LIMIT, GATHER_LOCAL, GROUP, DIM,
        )  # fmt: skip


def launch_put(part: Tensor, out: Tensor, heads: ClassHeads) -> None:
    """`move_heads.put_heads` by one kernel, on the device.

    part: [N, G * n, D].
    out: [N, Hq, D].
    heads: the class, whose heads of ``out`` are written.
    """
    n_rows, _, dim = part.shape
    if not n_rows:
        return
    _put_kernel[(triton.cdiv(n_rows, _ROWS), len(heads.numbers))](
        part,
        out,
        heads.kv,
        n_rows,
        part.stride(0),
        part.stride(1),
        out.stride(0),
        out.stride(1),
        GROUP=heads.group,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        ROWS=_ROWS,
    )


@triton.jit(do_not_specialize=["n_rows"])
def _put_kernel(
    part,
    out,
    heads,
    n_rows,
    part_row,
    part_head,
    out_row,
    out_head,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    index = tl.program_id(1)
    head = tl.load(heads + index)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    inside = (row < n_rows)[:, None] & (dims < DIM)[None, :]
    for member in tl.static_range(GROUP):
        value = tl.load(
            part + (row * part_row + (index * GROUP + member) * part_head)[:, None] + dims[None, :], mask=inside
        )
        tl.store(
            out + (row * out_row + (head * GROUP + member) * out_head)[:, None] + dims[None, :], value, mask=inside
        )
