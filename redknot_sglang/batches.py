# SPDX-License-Identifier: Apache-2.0
"""From SGLang's ForwardBatch to the batches of `kernels/`, which know nothing of SGLang."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redknot_sglang.kernels.batch import DecodeBatch, ExtendBatch, ScatteredBatch
from redknot_sglang.kernels.host_copy import to_device
from redknot_sglang.plan.gather import Runs, Stretch


def decode_batch(forward_batch: Any, bs: int, req_to_token: Tensor, full_to_local: Tensor) -> DecodeBatch:
    """A decode step: one new row for each request.

    forward_batch: SGLang's ForwardBatch.
    bs: requests that count; those behind them fill a CUDA graph up and are left out.
    req_to_token: [requests, tokens] int32, global slot of each token of each request.
    full_to_local: [global slots + 1] int64, local slot of each global slot, 0 for none.
    """
    seq_lens_cpu = forward_batch.seq_lens_cpu
    return DecodeBatch(
        req_to_token=req_to_token,
        req_pool_indices=forward_batch.req_pool_indices[:bs],
        full_to_local=full_to_local,
        seq_lens=forward_batch.seq_lens[:bs],
        seq_lens_cpu=None if seq_lens_cpu is None else seq_lens_cpu[:bs].tolist(),
    )


def extend_batch(forward_batch: Any, runs: Runs | None, req_to_token: Tensor, full_to_local: Tensor) -> ExtendBatch:
    """A prefill step: any number of new rows for each request.

    forward_batch: SGLang's ForwardBatch.
    runs: where the rows stand, if they are not the last of their requests (a *gather extend*, which computes repaired
        rows of segments and the text behind them in one batch); None for ordinary prefill.
    req_to_token: [requests, tokens] int32, global slot of each token of each request.
    full_to_local: [global slots + 1] int64, local slot of each global slot, 0 for none.
    """
    if runs is not None:
        return gather_batch(runs, req_to_token, full_to_local, forward_batch.req_pool_indices, forward_batch.positions)
    prefix_lens_cpu = _host_list(forward_batch.extend_prefix_lens_cpu)
    rows_cpu = _host_list(forward_batch.extend_seq_lens_cpu)
    return ExtendBatch(
        req_to_token=req_to_token,
        req_pool_indices=forward_batch.req_pool_indices,
        full_to_local=full_to_local,
        prefix_lens=forward_batch.extend_prefix_lens.to(torch.int32),
        seq_lens=forward_batch.seq_lens.to(torch.int32),
        prefix_lens_cpu=prefix_lens_cpu,
        seq_lens_cpu=[prefix + rows for prefix, rows in zip(prefix_lens_cpu, rows_cpu, strict=True)],
    )


def verify_batch(forward_batch: Any, bs: int, rows: int, req_to_token: Tensor, full_to_local: Tensor) -> ExtendBatch:
    """A step of speculative decoding, which *verifies* drafts: it computes all rows of a draft behind each request's text.

    forward_batch: SGLang's ForwardBatch, whose lengths are those without the drafts.
    bs: requests that count, as in `decode_batch`.
    rows: tokens of a draft, which is a chain.
    req_to_token, full_to_local: as in `decode_batch`.
    """
    lens = forward_batch.seq_lens[:bs].to(torch.int32)
    lens_cpu = _host_list(lens if forward_batch.seq_lens_cpu is None else forward_batch.seq_lens_cpu[:bs])
    return ExtendBatch(
        req_to_token=req_to_token,
        req_pool_indices=forward_batch.req_pool_indices[:bs],
        full_to_local=full_to_local,
        prefix_lens=lens,
        seq_lens=lens + rows,
        prefix_lens_cpu=lens_cpu,
        seq_lens_cpu=[prefix + rows for prefix in lens_cpu],
    )


def gather_batch(
    runs: Runs, req_to_token: Tensor, full_to_local: Tensor, req_pool_indices: Tensor, positions: Tensor
) -> ExtendBatch:
    """What attention plans of a gather extend; tensors as in ExtendBatch, positions int [rows].

    Every run is a request of its own, over the slots of the request that it belongs to. Where runs are short their
    page lists would be most of the work; then a request's rows stay together. Raises RuntimeError if the runs are not
    those of these rows.
    """
    if runs.num_rows != len(positions):
        raise RuntimeError(f"the batch has {len(positions)} rows, its runs others: not its plan")
    rows = [rows.tolist() for rows in runs.rows] if runs.is_scattered else []
    requests, starts, stops = runs.requests, runs.starts, runs.stops
    if rows:
        requests, starts, stops = list(range(len(rows))), [at[0] for at in rows], [at[-1] + 1 for at in rows]
    index, prefix_lens, seq_lens = (
        to_device(values, positions.device, torch.int32) for values in (requests, starts, stops)
    )
    pages = req_to_token, req_pool_indices[index.long()], full_to_local
    plain = ExtendBatch(*pages, prefix_lens, seq_lens, starts, stops)
    return ScatteredBatch(**vars(plain), positions=positions.to(torch.int32), positions_cpu=rows) if rows else plain


def restore(row: Tensor, stretch: Stretch) -> None:
    """Put a request's slots, written in the order of a stretch, at their positions; row: int32 [context]."""
    order = to_device(stretch.order, row.device, torch.int64)
    row[order] = row[stretch.start : stretch.stop].clone()


def _host_list(values: Any) -> list[int]:
    return values.tolist() if isinstance(values, Tensor) else list(values)
