# SPDX-License-Identifier: Apache-2.0
"""Decode path "triton": our own kernel for both classes, for devices and head sizes that no library serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, HeadClass
from .class_heads import Target
from .move_heads import put_heads
from .page_list import near_pages, write_pages
from .paths import check_rows
from .triton_decode_kernel import decode, splits_for
from .triton_shapes import check_scale, triton_why_not


@dataclass(frozen=True)
class PlannedDecode:
    """What the kernel reads of a batch.

    seq_lens: int [B], tokens of each request.
    req_to_token: int32 [R, C], the page lists of the global class.
    req_pool_indices: int64 [B], each request's row of ``req_to_token``.
    near: int32 [B, window + sink], the page lists of the local class; [B, 0] without local heads.
    max_len: tokens of the longest request, or of the longest there can be.
    """

    seq_lens: Tensor
    req_to_token: Tensor
    req_pool_indices: Tensor
    near: Tensor
    max_len: int


class TritonDecode:
    """Decode by a fused kernel whose parts are merged by a second one, in fp16, bf16 or fp32; pools may have another dtype and scales.

    After a plan, ``planned`` is what the kernel reads.
    """

    name: ClassVar[str] = "triton"

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self.planned: PlannedDecode | None = None
        self._graph: PlannedDecode | None = None

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None."""
        return triton_why_not(spec)

    def plan_decode(self, batch: DecodeBatch) -> None:
        bs = len(batch.req_pool_indices)
        # Without lengths on the host, splits are sized for the longest request there could be: no need to wait.
        longest = max(batch.seq_lens_cpu) if batch.seq_lens_cpu else batch.req_to_token.shape[1]
        self.planned = PlannedDecode(
            batch.seq_lens,
            batch.req_to_token,
            batch.req_pool_indices,
            torch.empty((bs, self._near_width()), dtype=torch.int32, device=self._spec.device),
            longest,
        )
        self._write_near(self.planned, batch)

    def init_graph(self, max_bs: int, max_context: int) -> None:
        device = self._spec.device
        self._graph = PlannedDecode(
            torch.ones(max_bs, dtype=torch.int64, device=device),
            torch.empty(0),
            torch.zeros(max_bs, dtype=torch.int64, device=device),
            torch.zeros((max_bs, self._near_width()), dtype=torch.int32, device=device),
            max_context,
        )

    def plan_graph(self, batch: DecodeBatch) -> None:
        if self._graph is None:
            raise RuntimeError("init_graph must reserve the buffers before plan_graph fills them")
        kept, bs = self._graph, len(batch.req_pool_indices)
        kept.seq_lens[:bs].copy_(batch.seq_lens)
        kept.req_pool_indices[:bs].copy_(batch.req_pool_indices)
        self.planned = PlannedDecode(
            kept.seq_lens[:bs], batch.req_to_token, kept.req_pool_indices[:bs], kept.near[:bs], kept.max_len
        )
        self._write_near(self.planned, batch)

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
        planned = self.planned
        if planned is None:
            raise RuntimeError("run needs a plan: call plan_decode or plan_graph first")
        check_rows(q, len(planned.seq_lens))
        check_scale(scale * k_scale)
        bs, heads = len(planned.seq_lens), k.shape[1]
        if head_class == "global":
            table, rows, width = planned.req_to_token, planned.req_pool_indices, planned.max_len
        else:
            table, rows, width = planned.near, None, min(planned.near.shape[1], planned.max_len)
        splits = splits_for(bs, heads, width, self._spec.device)
        limit = table.shape[1]
        out = decode(table, rows, table.stride(0), planned.seq_lens, limit, splits, q, k, v, scale * k_scale, v_scale)
        if target is None:
            return out
        put_heads(out, target)
        return target.out

    def _near_width(self) -> int:
        return self._spec.window + self._spec.sink if self._spec.local_widths else 0

    def _write_near(self, planned: PlannedDecode, batch: DecodeBatch) -> None:
        if not self._spec.local_widths:
            return
        starts = torch.arange(len(planned.near), device=planned.near.device) * planned.near.shape[1]
        write_pages(
            near_pages(self._spec),
            planned.near.view(-1),
            starts,
            planned.req_to_token,
            planned.req_pool_indices,
            batch.full_to_local,
            None,
            planned.seq_lens,
        )
