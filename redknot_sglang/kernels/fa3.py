# SPDX-License-Identifier: Apache-2.0
"""Path "fa3": extend on Hopper by SGLang's own FlashAttention-3 library, one call per class and no plan.

The local class calls it with the window built in and folds the sinks in afterwards. Decode is left to
FlashInfer, or to Triton where FlashInfer does not serve; page lists of one row are what those are better at.
"""

from __future__ import annotations

import logging
from functools import cached_property

import torch
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, Path, check_rows
from .class_heads import Target
from .fa3_plan import Fa3Plan, RecordedPlans
from .flashinfer import FlashInferPath
from .sink_fold import sink_fold
from .trial import extend_trial_error_in_child
from .triton_path import TritonPath

logger = logging.getLogger(__name__)

HEAD_DIMS = (64, 96, 128, 192, 256)


class Fa3Path:
    """Extend by FlashAttention-3, bf16 or fp16, on sm_90; decode by FlashInfer or Triton, as the log says."""

    name = "fa3"

    def __init__(self, spec: ClassSpec) -> None:
        # Imported here: the library is large, and only this path needs it.
        from sgl_kernel.flash_attn import flash_attn_with_kvcache

        self._attend = flash_attn_with_kvcache
        self._spec = spec
        self._plan: Fa3Plan | None = None
        self._recorded: RecordedPlans | None = None

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None. A first call tries the library in a child
        process: where it lacks a kernel, it ends its process.
        """
        if torch.cuda.get_device_capability(spec.device)[0] != 9:
            return f"it needs a Hopper GPU, this is {torch.cuda.get_device_name(spec.device)}"
        if spec.head_dim not in HEAD_DIMS:
            return f"it serves head_dim {', '.join(map(str, HEAD_DIMS))}, the model has {spec.head_dim}"
        if spec.dtype not in (torch.float16, torch.bfloat16):
            return f"it serves float16 and bfloat16, not {spec.dtype}"
        return extend_trial_error_in_child("fa3", spec)

    def plan_extend(self, batch: ExtendBatch) -> None:
        self._plan = Fa3Plan.of(batch, self._spec)

    def plan_decode(self, batch: DecodeBatch) -> None:
        self._decode.plan_decode(batch)
        self._plan = None

    def init_extend_graphs(self, max_rows: int, max_context: int) -> None:
        """Reserve the persistent buffers of prefill graphs of up to ``max_rows`` rows."""
        self._recorded = RecordedPlans(self._spec, max_rows, max_context)

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        """Plan in the persistent buffers, for a graph of ``rows`` rows; False if no graph can serve the batch."""
        if self._recorded is None or not self._recorded.fits(batch, rows):
            return False
        self._plan = self._recorded.plan(batch, rows)
        return True

    def run(
        self,
        head_class: HeadClass,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        target: Target | None = None,
    ) -> Tensor:
        plan = self._plan
        if plan is None:
            return self._decode.run(head_class, q, k, v, scale, target)
        check_rows(q, plan.rows)
        local = head_class == "local"
        pages = plan.pages[head_class]
        fold = plan.fold if local else None
        # The library writes to any stride of rows, so that a slice of the target needs no copy.
        view = to = target.view if target is not None and fold is None else None
        if to is None and fold is None and plan.recorded:
            # Rows behind the batch's are not written, and must be numbers all the same.
            to = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        result = self._attend(
            q,
            k.unsqueeze(1),
            v.unsqueeze(1),
            cache_seqlens=pages.lens,
            page_table=pages.table,
            cu_seqlens_q=plan.cu_rows,
            max_seqlen_q=plan.max_rows,
            softmax_scale=scale,
            causal=True,
            window_size=(self._spec.window - 1, 0) if local else (-1, -1),
            return_softmax_lse=fold is not None,
            out=to,
            num_splits=plan.num_splits(head_class, k.shape[1]),
        )
        if fold is not None:
            out, lse = result[:2]
            sink_fold(out, lse, "heads_rows", "e", q, k, v, fold, self._spec.window, scale, target)
        else:
            out = result
            if target is not None and view is None:
                target.put(out)
        return out if target is None else target.out

    def init_graph(self, max_bs: int, max_context: int) -> None:
        self._decode.init_graph(max_bs, max_context)

    def plan_graph(self, batch: DecodeBatch, bs: int, capture: bool) -> None:
        self._decode.plan_graph(batch, bs, capture)
        self._plan = None

    @cached_property
    def _decode(self) -> Path:
        reason = FlashInferPath.why_not(self._spec, extend=False)
        if reason is None:
            return FlashInferPath(self._spec)
        logger.info("attention path fa3 decodes by triton; flashinfer is left out: %s", reason)
        return TritonPath(self._spec)
