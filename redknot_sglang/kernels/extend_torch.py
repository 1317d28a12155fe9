# SPDX-License-Identifier: Apache-2.0
"""Extend path "torch": gathers pages and calls scaled_dot_product_attention."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .batch import CLASSES, ClassSpec, ExtendBatch, HeadClass, ScatteredBatch
from .class_heads import Target
from .move_heads import put_heads
from .paths import check_rows
from .torch_blocks import Block, CausalBand, Request, extend_global, extend_local
from .torch_scattered import scattered_rows


def needs_cpu(spec: ClassSpec) -> str | None:
    """Why the torch paths do not serve ``spec``: they are for CPUs, though they compute the same on any device."""
    return None if spec.device.type == "cpu" else "it serves CPUs; use triton to compare with on a GPU"


class TorchExtend:
    """Extend by torch alone, in the queries' dtype; pools may have another dtype and scales.

    A row's result does not depend on which rows share its batch or chunk, up to sums being rounded in another
    order.
    """

    name: ClassVar[str] = "torch"
    scattered: ClassVar[bool] = True

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self._band = CausalBand(spec.dtype, spec.device)
        self._planned: dict[HeadClass, list[Request]] = {}
        self._rows = 0

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None."""
        return needs_cpu(spec)

    def plan_extend(self, batch: ExtendBatch) -> None:
        self._rows = batch.qo_indptr[-1]
        self._planned = {c: self._requests(batch, c) for c in CLASSES if self._spec.widths(c)}

    def _requests(self, batch: ExtendBatch, head_class: HeadClass) -> list[Request]:
        if isinstance(batch, ScatteredBatch):
            return scattered_rows(batch, head_class, self._spec)
        return extend_global(batch, self._band) if head_class == "global" else extend_local(batch, self._spec)

    def run(
        self,
        head_class: HeadClass,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        *,
        target: Target | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> Tensor:
        check_rows(q, self._rows)
        rows, n_q, dim = q.shape
        heads = k.shape[1]
        queries = q.reshape(rows, heads, n_q // heads, dim)
        out = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
        for request in self._planned[head_class]:
            _run_request(request, queries, k, v, scale * k_scale, v_scale, out)
        result = out.view(rows, n_q, dim)
        if target is None:
            return result
        put_heads(result, target)
        return target.out


def _run_request(
    request: Request, queries: Tensor, k: Tensor, v: Tensor, scale: float, v_scale: float, out: Tensor
) -> None:
    """Attention of one request's rows, written to its rows of `out`.

    queries: [rows, KV heads, group, D], the rows of all requests; `out` likewise.
    k, v: [slots, KV heads, D], the pool's.
    KV heads take the batch dimension; the query heads of a group share keys and values with stride 0.
    """
    group = queries.shape[2]
    # index_select, not indexing: many times faster on the CPU for rows of this size.
    keys, values = (x.index_select(0, request.slots).to(queries.dtype) for x in (k, v))
    for block in request.blocks:
        rows = slice(block.first, block.last)
        near_k, near_v = (
            _pages_of(block, x).permute(1, 0, 2)[:, None].expand(-1, group, -1, -1) for x in (keys, values)
        )
        rows_q = queries[rows].permute(1, 2, 0, 3)
        result = scaled_dot_product_attention(
            rows_q, near_k, near_v, attn_mask=block.mask, is_causal=block.causal, scale=scale
        )
        out[rows] = (result if v_scale == 1.0 else result * v_scale).permute(2, 0, 1, 3)


def _pages_of(block: Block, pages: Tensor) -> Tensor:
    near = pages[block.start : block.stop]
    return near if block.sinks == 0 else torch.cat([pages[: block.sinks], near])
