# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The inner step of our attention kernels: a block of pages into the running softmax of some rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pool, slot, slot_stride, listed, MASKED: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [KEYS, BLOCK_D] of the pool of one head; if MASKED, 0 where not listed: garbage times 0 could be NaN."""
    dims = tl.arange(0, BLOCK_D)
    at = pool + (slot * slot_stride)[:, None] + dims[None, :]
    if MASKED:
        return tl.load(at, mask=listed[:, None] & (dims < DIM)[None, :], other=0.0)
    if DIM != BLOCK_D:
        return tl.load(at, mask=(dims < DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def load_pages(k, v, k_slot, v_slot, pages, listed, MASKED: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys and values [KEYS, BLOCK_D] of one head, whose pools begin at k and v; ``pages`` [KEYS] points at their slots.

    Without MASKED all are listed, and ``listed`` may be None.
    """
    if MASKED:
        slot = tl.load(pages, mask=listed, other=0).to(tl.int64)
    else:
        slot = tl.load(pages).to(tl.int64)
    key = load_rows(k, slot, k_slot, listed, MASKED, DIM, BLOCK_D)
    value = load_rows(v, slot, v_slot, listed, MASKED, DIM, BLOCK_D)
    return key, value


@triton.jit
def attend_keys(
    acc,
    top,
    total,
    query,
    key,
    value,
    seen,
    scale,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of the running softmax, in base 2: keys [KEYS, D] into rows [PACKED, D], where seen.

    Without MASKED every row sees all keys, and ``seen`` may be None. ``scale`` is positive. Keys and values that are stored in
    another dtype, as 8-bit floats, are converted to the queries'.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)
    logits = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    # The scale goes into the exponent, where it costs no instruction of its own: the largest logit stays the largest.
    to_base_2 = scale * 1.4426950408889634
    if MASKED:
        logits = tl.where(seen, logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, axis=1) * to_base_2)
    base = new_top
    if MASKED:
        # A row that has seen nothing yet keeps -inf; subtracting 0 instead leaves its weights at 0.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(logits * to_base_2 - base[:, None])
    kept = tl.exp2(top - base)
    total = total * kept + tl.sum(weights, axis=1)
    acc = acc * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def store_part(parts, lse, part, acc, top, total, v_scale, live, inside, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [PACKED, D] as one part of their softmax: normed to ``parts`` [*, DIM], its base-2 log-sum-exp to ``lse``,
    both at the indices ``part`` int64 [PACKED]. A row that has seen nothing gives 0 and -inf. ``v_scale`` times what has been added up
    are values.
    """
    some = total > 0.0
    norm = tl.where(some, total, 1.0)
    result = acc / norm[:, None] * v_scale
    tl.store(parts + (part * DIM)[:, None] + tl.arange(0, BLOCK_D)[None, :], result, mask=inside)
    tl.store(lse + part, tl.where(some, top + tl.log2(norm), float("-inf")), mask=live)
