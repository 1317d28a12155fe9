# SPDX-License-Identifier: Apache-2.0
"""SGLang's ForwardBatch in the terms of `kernels/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redknot_sglang.kernels.batch import DecodeBatch, ExtendBatch
from redknot_sglang.reuse.gather import Runs


def decode_batch(forward_batch: Any, bs: int, req_to_token: Tensor, full_to_local: Tensor) -> DecodeBatch:
    """The first `bs` requests of a decode; the rest is padding."""
    seq_lens_cpu = forward_batch.seq_lens_cpu
    return DecodeBatch(
        req_to_token=req_to_token,
        req_pool_indices=forward_batch.req_pool_indices[:bs],
        full_to_local=full_to_local,
        seq_lens=forward_batch.seq_lens[:bs],
        seq_lens_cpu=None if seq_lens_cpu is None else seq_lens_cpu[:bs].tolist(),
    )


def extend_batch(forward_batch: Any, runs: Runs | None, req_to_token: Tensor, full_to_local: Tensor) -> ExtendBatch:
    """An extend; `runs` are those of its rows if it is a gather extend."""
    if runs is not None:
        return runs.batch(req_to_token, full_to_local, forward_batch.req_pool_indices, forward_batch.positions)
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


def _host_list(values: Any) -> list[int]:
    return values.tolist() if isinstance(values, Tensor) else list(values)
