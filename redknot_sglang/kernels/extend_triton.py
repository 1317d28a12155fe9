# SPDX-License-Identifier: Apache-2.0
"""Extend path "triton": our own kernel for both classes, for devices and head sizes that no library serves."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .batch import ClassSpec, ExtendBatch, HeadClass
from .class_heads import Target
from .device_work import DeviceWork, Tiling
from .extend_work import Work, split_tiles, tiles_of, whole_tiles
from .move_heads import put_heads
from .page_list import near_pages, write_pages
from .paths import MAX_RUNS, check_rows
from .triton_extend_kernel import extend
from .triton_merge import processors_of
from .triton_recorded import RecordedWork
from .triton_shapes import check_scale, triton_why_not


class TritonExtend:
    """Extend by one fused kernel, in fp16, bf16 or fp32, for rows at any positions; pools may have another dtype and scales.

    spec: the shape.
    processors: programs that the work is divided for, None for the device's; with 1 no tile is split. For measurements.
    tiling: the kernel's launch shape, None for that of the spec. For measurements.

    After a plan, ``work`` is the planned work by class and number of KV heads, and ``pages`` each class's page lists
    with the place where each request's list begins.
    """

    name: ClassVar[str] = "triton"
    scattered: ClassVar[bool] = True

    def __init__(self, spec: ClassSpec, processors: int | None = None, tiling: Tiling | None = None) -> None:
        self._spec = spec
        self._processors = processors_of(spec.device) if processors is None else processors
        self._tiling = Tiling.of(spec.head_dim, spec.dtype) if tiling is None else tiling
        self.work: dict[tuple[HeadClass, int], DeviceWork] = {}
        self.pages: dict[HeadClass, tuple[Tensor, Tensor]] = {}
        self._rows = 0
        self._recorded: RecordedWork | None = None

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None."""
        return triton_why_not(spec)

    def plan_extend(self, batch: ExtendBatch) -> None:
        spec = self._spec
        pages: dict[HeadClass, tuple[Tensor, Tensor]] = {}
        if spec.global_widths:
            stride = batch.req_to_token.stride(0)
            pages["global"] = (batch.req_to_token, batch.req_pool_indices.to(torch.int64) * stride)
        if spec.local_widths:
            rule = near_pages(spec)
            total = sum(map(rule.count, batch.prefix_lens_cpu, batch.seq_lens_cpu))
            skipped = (batch.prefix_lens - (spec.window - 1)).clamp_(min=0).sub_(spec.sink).clamp_(min=0)
            counts = (batch.seq_lens - skipped).to(torch.int64)
            starts = counts.cumsum(0) - counts
            slots = torch.empty(total, dtype=torch.int32, device=spec.device)
            write_pages(
                rule,
                slots,
                starts,
                batch.req_to_token,
                batch.req_pool_indices,
                batch.full_to_local,
                batch.prefix_lens,
                batch.seq_lens,
            )
            pages["local"] = (slots, starts)
        self._rows = batch.qo_indptr[-1]
        work = self._work(batch)
        # Classes and widths whose tiles are whole share their work.
        on_device = {id(one): DeviceWork.of(one, batch) for one in {id(one): one for one in work.values()}.values()}
        self.work, self.pages = {key: on_device[id(one)] for key, one in work.items()}, pages

    def init_extend_graphs(self, max_rows: int, max_context: int, max_runs: int = MAX_RUNS) -> None:
        tile_rows = self._tiling.packed // self._spec.group
        self._recorded = RecordedWork(self._spec, tile_rows, self._processors, max_rows, max_context, max_runs)

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        if self._recorded is None or not self._recorded.fits(batch, rows):
            return False
        self.work, self.pages = self._recorded.fill(batch, rows, self._work(batch))
        self._rows = rows
        return True

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
        check_scale(scale * k_scale)
        work, pages, spec = self.work[head_class, k.shape[1]], self.pages[head_class], self._spec
        out = extend(head_class, work, self._tiling, *pages, q, k, v, spec.window, spec.sink, scale * k_scale, v_scale)
        if target is None:
            return out
        put_heads(out, target)
        return target.out

    def _work(self, batch: ExtendBatch) -> dict[tuple[HeadClass, int], Work]:
        """Local rows have few keys each, so that only tiles of the global class are split."""
        spec, tiling = self._spec, self._tiling
        tiles = tiles_of(batch, tiling.packed // spec.group)
        whole = whole_tiles(tiles)
        work: dict[tuple[HeadClass, int], Work] = {("local", heads): whole for heads in spec.local_widths}
        for heads in spec.global_widths:
            split = split_tiles(tiles, tiling.keys, heads, self._processors)
            work["global", heads] = split if split.merges else whole
        return work
