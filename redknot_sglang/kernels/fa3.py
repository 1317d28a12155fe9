# SPDX-License-Identifier: Apache-2.0
"""Path "fa3": extend on Hopper by SGLang's own FlashAttention-3 library, one call per class and no plan.

The local class calls it with the window built in and folds the sinks in afterwards. Decode is left to
FlashInfer, or to Triton where FlashInfer does not serve; page lists of one row are what those are better at.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, Path, check_rows
from .class_heads import Target
from .flashinfer import FlashInferPath
from .page_list import ALL_PAGES, PageRule, window_pages, write_pages
from .sink_fold import FoldPlan, sink_fold
from .trial import extend_trial_error_in_child
from .triton_path import TritonPath

logger = logging.getLogger(__name__)

HEAD_DIMS = (64, 96, 128, 192, 256)


@dataclass(frozen=True)
class _Pages:
    """Page table int32 [B, longest] of a class and how many of each row's entries count, int32 [B]."""

    table: Tensor
    lens: Tensor


class Fa3Path:
    """Extend by FlashAttention-3, bf16 or fp16, on sm_90; decode by FlashInfer or Triton, as the log says."""

    name = "fa3"

    def __init__(self, spec: ClassSpec) -> None:
        # Imported here: the library is large, and only this path needs it.
        from sgl_kernel.flash_attn import flash_attn_with_kvcache

        self._attend = flash_attn_with_kvcache
        self._spec = spec
        self._pages: dict[HeadClass, _Pages] = {}
        self._fold: FoldPlan | None = None
        self._cu_rows = torch.empty(0)
        self._max_rows = 0
        self._rows = 0
        self._extending = False

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
        spec = self._spec
        self._pages = {}
        if spec.global_widths:
            self._pages["global"] = _pages(ALL_PAGES, batch, batch.seq_lens)
        if spec.local_widths:
            start = (batch.prefix_lens - (spec.window - 1)).clamp_(min=0)
            self._pages["local"] = _pages(window_pages(spec), batch, batch.seq_lens - start)
        rows = (batch.seq_lens - batch.prefix_lens).cumsum(0, dtype=torch.int32)
        self._cu_rows = F.pad(rows, (1, 0))
        self._max_rows = max(batch.qo_lens)
        self._fold = FoldPlan.of(batch, spec)
        self._rows, self._extending = batch.qo_indptr[-1], True

    def plan_decode(self, batch: DecodeBatch) -> None:
        self._decode.plan_decode(batch)
        self._extending = False

    def run(
        self,
        head_class: HeadClass,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        logit_cap: float = 0.0,
        target: Target | None = None,
    ) -> Tensor:
        if not self._extending:
            return self._decode.run(head_class, q, k, v, scale, logit_cap, target)
        check_rows(q, self._rows)
        local = head_class == "local"
        pages = self._pages[head_class]
        fold = self._fold if local else None
        # The library writes to any stride of rows, so that a slice of the target needs no copy.
        view = target.view if target is not None and fold is None else None
        result = self._attend(
            q,
            k.unsqueeze(1),
            v.unsqueeze(1),
            cache_seqlens=pages.lens,
            page_table=pages.table,
            cu_seqlens_q=self._cu_rows,
            max_seqlen_q=self._max_rows,
            softmax_scale=scale,
            causal=True,
            window_size=(self._spec.window - 1, 0) if local else (-1, -1),
            softcap=logit_cap,
            return_softmax_lse=fold is not None,
            out=view,
        )
        if fold is not None:
            out, lse = result[:2]
            sink_fold(out, lse, "heads_rows", "e", q, k, v, fold, self._spec.window, scale, logit_cap, target)
        else:
            out = result
            if target is not None and view is None:
                target.put(out)
        return out if target is None else target.out

    def init_graph(self, max_bs: int, max_context: int) -> None:
        self._decode.init_graph(max_bs, max_context)

    def plan_graph(self, batch: DecodeBatch, bs: int, capture: bool) -> None:
        self._decode.plan_graph(batch, bs, capture)
        self._extending = False

    @cached_property
    def _decode(self) -> Path:
        reason = FlashInferPath.why_not(self._spec)
        if reason is None:
            return FlashInferPath(self._spec)
        logger.info("attention path fa3 decodes by triton; flashinfer is left out: %s", reason)
        return TritonPath(self._spec)


def _pages(rule: PageRule, batch: ExtendBatch, lens: Tensor) -> _Pages:
    bs = len(batch.seq_lens_cpu)
    longest = max(map(rule.count, batch.prefix_lens_cpu, batch.seq_lens_cpu))
    # Zeros: the library may look at the entries behind a shorter list, and slot 0 is always there.
    table = torch.zeros((bs, longest), dtype=torch.int32, device=lens.device)
    starts = torch.arange(bs, device=lens.device) * longest
    write_pages(
        rule,
        table.view(-1),
        starts,
        batch.req_to_token,
        batch.req_pool_indices,
        batch.full_to_local,
        batch.prefix_lens,
        batch.seq_lens,
    )
    return _Pages(table, lens)
