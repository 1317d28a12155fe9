# SPDX-License-Identifier: Apache-2.0
"""Extend path "fa3": SGLang's own FlashAttention-3 library on Hopper, one call per class.

The local class calls it with the window built in and folds the sinks in afterwards.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .batch import ClassSpec, ExtendBatch, HeadClass
from .class_heads import Target
from .fa3_arguments import Fa3Arguments, RecordedFa3Arguments
from .move_heads import put_heads
from .paths import (
    MAX_RUNS,
    check_rows,
    check_unscaled,
    needs_16_bits,
    needs_cuda,
    needs_head_dim,
    needs_stored_as_queries,
)
from .sink_fold import sink_fold
from .trial import extend_trial_error_in_child

HEAD_DIMS = (64, 96, 128, 192, 256)


class Fa3Extend:
    """Extend by FlashAttention-3, bf16 or fp16, on sm_90.

    Over pools of 8-bit floats the library would want queries of 8 bits, too, and round the weights to 8 bits. Decode and rows at
    scattered positions do neither, so that what a row gets would depend on what computed it; these pools are left to other paths.
    """

    name: ClassVar[str] = "fa3"
    scattered: ClassVar[bool] = False

    def __init__(self, spec: ClassSpec) -> None:
        # Imported here: the library is large, and only this path needs it.
        from sgl_kernel.flash_attn import flash_attn_with_kvcache

        self._attend = flash_attn_with_kvcache
        self._spec = spec
        self._planned: Fa3Arguments | None = None
        self._recorded: RecordedFa3Arguments | None = None

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None.

        A first call tries the library in a child process: where the library lacks a kernel, it ends its process.
        """
        return (
            needs_cuda(spec)
            or _needs_hopper(spec)
            or needs_head_dim(spec, HEAD_DIMS)
            or needs_16_bits(spec)
            or needs_stored_as_queries(spec)
            or extend_trial_error_in_child(Fa3Extend, spec)
        )

    def plan_extend(self, batch: ExtendBatch) -> None:
        self._planned = Fa3Arguments.of(batch, self._spec)

    def init_extend_graphs(self, max_rows: int, max_context: int, max_runs: int = MAX_RUNS) -> None:
        self._recorded = RecordedFa3Arguments(self._spec, max_rows, max_context, max_runs)

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        if self._recorded is None or not self._recorded.fits(batch, rows):
            return False
        self._planned = self._recorded.fill(batch, rows)
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
        planned = self._planned
        if planned is None:
            raise RuntimeError("run needs a plan: call plan_extend or plan_extend_graph first")
        check_rows(q, planned.rows)
        check_unscaled(k_scale, v_scale)
        local = head_class == "local"
        pages = planned.pages[head_class]
        sinks = planned.sinks if local else None
        # The library writes to any stride of rows, so that a slice of the target needs no copy.
        view = to = target.view if target is not None and sinks is None else None
        if to is None and sinks is None and planned.recorded:
            # The library leaves rows behind the batch's unwritten; zeros keep NaN out of what follows.
            to = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        result = self._attend(
            q,
            k.unsqueeze(1),
            v.unsqueeze(1),
            cache_seqlens=pages.lens,
            page_table=pages.table,
            cu_seqlens_q=planned.cu_rows,
            max_seqlen_q=planned.max_rows,
            softmax_scale=scale,
            causal=True,
            window_size=(self._spec.window - 1, 0) if local else (-1, -1),
            return_softmax_lse=sinks is not None,
            out=to,
            num_splits=planned.num_splits(head_class, k.shape[1]),
        )
        if sinks is not None:
            out, lse = result[:2]
            sink_fold(out, lse, "heads_rows", "e", q, k, v, sinks, self._spec.window, scale, target)
        else:
            out = result
            if target is not None and view is None:
                put_heads(out, target)
        return out if target is None else target.out


def _needs_hopper(spec: ClassSpec) -> str | None:
    if torch.cuda.get_device_capability(spec.device)[0] == 9:
        return None
    return f"it needs a Hopper GPU, this is {torch.cuda.get_device_name(spec.device)}"
