# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""The kernel behind `reuse/question.py`: how much attention each document gets from a question's rows, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of a program, and keys that it reads at once.
_ROWS, _KEYS = 16, 64


@triton.jit(do_not_specialize=["n_rows", "n_heads", "n_documents", "skipped"])
def _document_sums_kernel(
    addresses,
    like,
    q,
    slots,
    starts,
    out,
    n_rows,
    n_heads,
    n_documents,
    skipped,
    scale,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    document, head = tl.program_id(0), tl.program_id(1)
    # Without the hint an address that was loaded is taken for unaligned.
    k = tl.multiple_of(tl.load(addresses + head).to(tl.pointer_type(like.dtype.element_ty)), 16)
    place, width = tl.load(addresses + n_heads + head), tl.load(addresses + 2 * n_heads + head)
    first, end = tl.load(starts + document), tl.load(starts + document + 1)
    begin = first + tl.minimum(skipped, end - first - 1)

    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, HEAD_BLOCK)
    live_rows, live_dims = row < n_rows, dim < HEAD_DIM
    at = (row[:, None] * n_heads + head) * HEAD_DIM + dim[None, :]
    queries = tl.load(q + at, mask=live_rows[:, None] & live_dims[None, :], other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    # From the document's own first key on, so that its sum does not depend on what stands before it.
    for block in range(begin, end, KEYS):
        key = block + tl.arange(0, KEYS)
        live = key < end
        slot = tl.load(slots + key, mask=live, other=0)
        here = (slot * width + place)[None, :] * HEAD_DIM + dim[:, None]
        keys = tl.load(k + here, mask=live[None, :] & live_dims[:, None], other=0.0).to(tl.float32)
        logits = tl.dot(queries, keys, input_precision="ieee") * scale
        logits = tl.where(live[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        top = higher
    tl.store(out + (head * n_rows + row) * n_documents + document, top + tl.log(total), mask=live_rows)


def launch_document_sums(
    addresses: Tensor, like: Tensor, q: Tensor, slots: Tensor, starts: Tensor, skipped: int, scale: float
) -> Tensor:
    """Log of each document's summed attention weights.

    addresses: int64 [3, heads]: of each query head the address of its layer's keys [slots, KV heads, D], its KV head's place
        among them, and how many KV heads there are.
    like: any tensor of the keys' dtype.
    q: float32 [rows, heads, D], contiguous.
    slots: int64 [keys], where the keys of all documents are, one document behind the other.
    starts: int64 [documents + 1], where each document begins in `slots`, and their number of keys.
    skipped: first keys of a document that do not count; its last one always does.
    scale: factor of the logits.
    Returns float32 [heads, rows, documents].
    """
    rows, heads, dim = q.shape
    documents = len(starts) - 1
    out = torch.empty(heads, rows, documents, dtype=torch.float32, device=q.device)
    _document_sums_kernel[(documents, heads, triton.cdiv(rows, _ROWS))](
        addresses,
        like,
        q,
        slots,
        starts,
        out,
        rows,
        heads,
        documents,
        skipped,
        scale,
        HEAD_DIM=dim,
        HEAD_BLOCK=max(16, triton.next_power_of_2(dim)),
        ROWS=_ROWS,
        KEYS=_KEYS,
    )
    return out
