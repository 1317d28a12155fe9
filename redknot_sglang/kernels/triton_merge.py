# SPDX-License-Identifier: Apache-2.0
# mypy: allow-untyped-defs
"""Rows whose keys were split over programs: how many programs there are, and the merge of their parts.

A part is a row's softmax over some of its keys: the result, normed, and the log-sum-exp that weighs it, float32.
Part p of a tile of ``rows`` rows takes the indices from ``p * rows`` on, each with all its query heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Parts that a merge of tiles reads as one block at least: it would be compiled anew for every smaller power of two.
_LEAST_BLOCK = 16


def processors_of(device: torch.device) -> int:
    """Programs that surely run at once; 1 where there is no GPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def workspace(parts: int, n_q: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for the parts of a merge.

    parts: rows of all parts together, P.
    n_q: query heads.
    dim: head dimension.
    device: where to allocate.
    Returns results [P, n_q, D] and log-sum-exps [P, n_q], float32, unwritten.
    """
    return (
        torch.empty((parts, n_q, dim), dtype=torch.float32, device=device),
        torch.empty((parts, n_q), dtype=torch.float32, device=device),
    )


def merge(parts: Tensor, lse: Tensor, out: Tensor, splits: int) -> None:
    """Merge the same number of parts for every row: row i is the parts from ``i * splits`` to ``(i + 1) * splits - 1``.

    parts: float32 [N * splits, n_q, D], each normed.
    lse: float32 [N * splits, n_q], base-2 log-sum-exps.
    out: [N, n_q, D], contiguous; written.
    splits: parts of a row.
    """
    _launch(parts, lse, out, None, out.shape[0], 1, splits, splits)


def merge_listed(parts: Tensor, lse: Tensor, out: Tensor, merges: Tensor, tile_rows: int, most: int) -> None:
    """Merge the parts of some tiles; rows of other tiles are left alone.

    parts: float32 [P * tile_rows, n_q, D], each normed.
    lse: float32 [P * tile_rows, n_q], base-2 log-sum-exps.
    out: [N, n_q, D], contiguous; written.
    merges: int32 [M, 4] on the device, with the fields of ``extend_work.Merge``.
    tile_rows: rows of a whole tile.
    most: parts of the tile that has most.
    """
    _launch(parts, lse, out, merges, len(merges) * tile_rows, tile_rows, 0, max(most, _LEAST_BLOCK))


def _launch(
    parts: Tensor, lse: Tensor, out: Tensor, merges: Tensor | None, rows: int, tile_rows: int, splits: int, most: int
) -> None:
    _, n_q, dim = out.shape
    _merge_kernel[(rows, n_q)](
        parts,
        lse,
        out,
        merges,
        splits,
        LISTED=merges is not None,
        ROWS=tile_rows,
        BLOCK_S=triton.next_power_of_2(most),
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
    )


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    parts,
    lse,
    out,
    merges,
    splits,
    LISTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, head, n_q = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first, count = row * splits, splits
    if LISTED:
        entry, in_tile = merges + row // ROWS * 4, row % ROWS
        if in_tile >= tl.load(entry + 1):
            return
        row = tl.load(entry) + in_tile
        first = tl.load(entry + 2) * ROWS + in_tile
        count = tl.load(entry + 3)
    split, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    at = (first + split * ROWS).to(tl.int64) * n_q + head
    weight = tl.load(lse + at, mask=split < count, other=float("-inf"))
    # Some part holds the row's own token, so the maximum is finite.
    weight = tl.exp2(weight - tl.max(weight, axis=0))
    inside = (split < count)[:, None] & (dims < DIM)[None, :]
    part = tl.load(parts + (at * DIM)[:, None] + dims[None, :], mask=inside, other=0.0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    out_at = out + (row.to(tl.int64) * n_q + head) * DIM + dims
    tl.store(out_at, result.to(out.dtype.element_ty), mask=dims < DIM)
