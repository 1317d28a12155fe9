# SPDX-License-Identifier: Apache-2.0
"""Path "torch": gathers pages, calls scaled_dot_product_attention. Made for the CPU, works on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, ScatteredBatch, check_rows
from .class_heads import Target
from .torch_plan import Block, CausalBand, Group, Request, decode_groups, extend_global, extend_local
from .torch_scattered import scattered_rows


class TorchPath:
    """Attention by torch alone, in the dtype of the pools.

    A row's result does not depend on which rows share its batch or chunk, up to sums being rounded in another
    order. There are no CUDA graphs: ``init_graph`` and ``plan_graph`` raise RuntimeError.
    """

    name = "torch"

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self._band = CausalBand(spec.dtype, spec.device)
        self._plans: dict[HeadClass, list[Request] | list[Group]] = {}
        self._rows = 0

    def plan_extend(self, batch: ExtendBatch) -> None:
        self._rows = batch.qo_indptr[-1]
        self._plans = {}
        if isinstance(batch, ScatteredBatch):
            for head_class in ("global", "local"):
                if self._spec.widths(head_class):
                    self._plans[head_class] = scattered_rows(batch, head_class, self._spec)
            return
        if self._spec.global_widths:
            self._plans["global"] = extend_global(batch, self._band)
        if self._spec.local_widths:
            self._plans["local"] = extend_local(batch, self._spec)

    def plan_decode(self, batch: DecodeBatch) -> None:
        lens = batch.host_lens()
        self._rows = len(lens)
        self._plans = {}
        if self._spec.global_widths:
            self._plans["global"] = decode_groups(batch, lens, "global", self._spec)
        if self._spec.local_widths:
            self._plans["local"] = decode_groups(batch, lens, "local", self._spec)

    def run(
        self,
        head_class: HeadClass,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        target: Target | None = None,
    ) -> Tensor:
        check_rows(q, self._rows)
        rows, n_q, dim = q.shape
        heads = k.shape[1]
        queries = q.reshape(rows, heads, n_q // heads, dim)
        out = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
        for part in self._plans[head_class]:
            if isinstance(part, Request):
                _run_request(part, queries, k, v, scale, out)
            else:
                _run_group(part, queries, k, v, scale, out)
        result = out.view(rows, n_q, dim)
        if target is None:
            return result
        target.put(result)
        return target.out

    def init_graph(self, max_bs: int, max_context: int) -> None:
        raise RuntimeError("the torch path has no CUDA graphs: turn them off, or choose another attention path")

    def plan_graph(self, batch: DecodeBatch, bs: int, capture: bool) -> None:
        raise RuntimeError("the torch path has no CUDA graphs: turn them off, or choose another attention path")


def _run_request(request: Request, queries: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """KV heads take the batch dimension; the query heads of a group share keys and values with stride 0."""
    group = queries.shape[2]
    # index_select, not indexing: many times faster on the CPU for rows of this size.
    keys, values = k.index_select(0, request.slots), v.index_select(0, request.slots)
    for block in request.blocks:
        rows = slice(block.first, block.last)
        near_k, near_v = (
            _pages_of(block, x).permute(1, 0, 2)[:, None].expand(-1, group, -1, -1) for x in (keys, values)
        )
        rows_q = queries[rows].permute(1, 2, 0, 3)
        result = _attend(rows_q, near_k, near_v, block.mask, block.causal, scale)
        out[rows] = result.permute(2, 0, 1, 3)


def _run_group(group: Group, queries: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Requests take the batch dimension; the query heads of a group are the rows of one call."""
    heads, dim = k.shape[1:]
    keys, values = (x.index_select(0, group.slots).view(-1, group.width, heads, dim).transpose(1, 2) for x in (k, v))
    out[group.rows] = _attend(queries[group.rows], keys, values, group.mask, False, scale)


def _pages_of(block: Block, pages: Tensor) -> Tensor:
    near = pages[block.start : block.stop]
    return near if block.sinks == 0 else torch.cat([pages[: block.sinks], near])


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """Attention of [.., rows, D] over [.., keys, D]; a causal call has as many rows as keys."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
