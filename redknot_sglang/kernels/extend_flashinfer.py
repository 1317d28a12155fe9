# SPDX-License-Identifier: Apache-2.0
"""Extend path "flashinfer": FlashInfer's paged FA2 prefill, one plan per class and width.

The local class plans with the window built in and folds the sinks in afterwards. Page lists are written on the device.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .batch import CLASSES, ClassSpec, ExtendBatch, HeadClass
from .class_heads import Target
from .flashinfer_wrappers import HEAD_DIMS, Prefill, run_wrapper, workspace_of
from .page_list import ALL_PAGES, list_starts, window_pages, write_pages
from .paths import check_rows, needs_16_bits, needs_cuda, needs_head_dim, needs_stored_as_queries
from .sink_fold import SinksOfRows, sink_fold
from .stored import FP8
from .trial import extend_trial_error


class FlashInferExtend:
    """Extend by FlashInfer, bf16 or fp16, head dimension 64, 128 or 256; pools of that dtype, or of 8-bit floats with scales.

    The classes have a workspace each, so that a caller may run them on two streams.
    """

    name: ClassVar[str] = "flashinfer"
    scattered: ClassVar[bool] = False

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        # Kept: the workspaces are shared only as long as somebody holds them.
        self._workspace = {c: workspace_of(spec, c) for c in CLASSES if spec.widths(c)}
        self._wrappers = {(c, n): Prefill.of(spec, c, n, self._workspace[c]) for c in CLASSES for n in spec.widths(c)}
        self._sinks: SinksOfRows | None = None
        self._rows = 0

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None. A first call may compile FlashInfer's kernels, which
        takes a minute.
        """
        return (
            needs_cuda(spec)
            or needs_head_dim(spec, HEAD_DIMS)
            or needs_16_bits(spec)
            or needs_stored_as_queries(spec, FP8)
            or extend_trial_error(FlashInferExtend, spec)
        )

    def plan_extend(self, batch: ExtendBatch) -> None:
        spec = self._spec
        qo_indptr = torch.tensor(batch.qo_indptr, dtype=torch.int32)
        for head_class in self._workspace:
            local = head_class == "local"
            rule = window_pages(spec) if local else ALL_PAGES
            indptr = list_starts(rule, batch.prefix_lens_cpu, batch.seq_lens_cpu)
            slots = torch.empty(int(indptr[-1]), dtype=torch.int32, device=spec.device)
            starts = indptr.to(spec.device, non_blocking=True)
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
            for width in spec.widths(head_class):
                self._wrappers[head_class, width].plan(qo_indptr, indptr, slots, spec.window - 1 if local else -1)
        self._sinks = SinksOfRows.of(batch, spec)
        self._rows = batch.qo_indptr[-1]

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
        wrapper = self._wrappers[head_class, k.shape[1]].wrapper
        sinks = self._sinks if head_class == "local" else None
        if sinks is None:
            return run_wrapper(wrapper, q, k, v, scale * k_scale, target, v_scale)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        scale *= k_scale
        pages = k.unsqueeze(1), v.unsqueeze(1)
        _, lse = wrapper.run(q, pages, q_scale=scale, v_scale=v_scale, out=out, return_lse=True)
        sink_fold(out, lse, "rows_heads", "2", q, k, v, sinks, self._spec.window, scale, target, v_scale)
        return out if target is None else target.out
