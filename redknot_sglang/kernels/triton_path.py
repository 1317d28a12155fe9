# SPDX-License-Identifier: Apache-2.0
"""Path "triton": our own kernels for both classes, for devices and head sizes that no library serves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, check_rows
from .class_heads import Target
from .extend_work import Work, split_tiles, tiles_of, whole_tiles
from .page_list import near_pages, write_pages
from .triton_decode import decode, splits_for
from .triton_extend import ExtendPlan, Tiling, extend
from .triton_merge import processors_of
from .triton_recorded import RecordedWork

MAX_HEAD_DIM = 256
MAX_GROUP = 64


@dataclass(frozen=True)
class _Extend:
    """A planned extend: the work of each class and width, and each class' pages as ``(slots, starts)``."""

    work: dict[tuple[HeadClass, int], ExtendPlan]
    pages: dict[HeadClass, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Decode:
    """A planned decode: page lists with their row numbers (None: in order) and row length, and their longest
    length.
    """

    seq_lens: Tensor
    req_to_token: Tensor
    req_pool_indices: Tensor
    near: Tensor
    max_len: int


class TritonPath:
    """Attention by fused Triton kernels, in fp16, bf16 or fp32.

    ``processors``: programs that an extend's work is divided for, None for the device's; with 1 no tile is split.
    ``tiling``: None for that of the shape. Both are for measurements.
    """

    name = "triton"

    def __init__(self, spec: ClassSpec, processors: int | None = None, tiling: Tiling | None = None) -> None:
        self._spec = spec
        self._processors = processors_of(spec.device) if processors is None else processors
        self._tiling = Tiling.of(spec.head_dim, spec.dtype) if tiling is None else tiling
        self._plan: _Extend | _Decode | None = None
        self._rows = 0
        self._graph: _Decode | None = None
        self._recorded: RecordedWork | None = None

    def init_extend_graphs(self, max_rows: int, max_context: int) -> None:
        """Reserve the persistent buffers of prefill graphs of up to ``max_rows`` rows."""
        tile_rows = self._tiling.packed // self._spec.group
        self._recorded = RecordedWork(self._spec, tile_rows, self._processors, max_rows, max_context)

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        """Plan in the persistent buffers, for a graph of ``rows`` rows; False if no graph can serve the batch."""
        if self._recorded is None or not self._recorded.fits(batch, rows):
            return False
        self._plan = _Extend(*self._recorded.plan(batch, rows, self._work(batch)))
        self._rows = rows
        return True

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None."""
        if spec.head_dim > MAX_HEAD_DIM:
            return f"its head_dim is at most {MAX_HEAD_DIM}, the model's is {spec.head_dim}"
        if spec.group > MAX_GROUP:
            return f"it packs at most {MAX_GROUP} query heads per KV head, the model has {spec.group}"
        if spec.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"it serves float16, bfloat16 and float32, not {spec.dtype}"
        return None

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
        plans = {id(one): ExtendPlan.of(one, batch) for one in {id(one): one for one in work.values()}.values()}
        self._plan = _Extend({key: plans[id(one)] for key, one in work.items()}, pages)

    def plan_decode(self, batch: DecodeBatch) -> None:
        bs = len(batch.req_pool_indices)
        # Without lengths on the host, splits are sized for the longest request there could be: no need to
        # wait.
        longest = max(batch.seq_lens_cpu) if batch.seq_lens_cpu else batch.req_to_token.shape[1]
        plan = _Decode(
            batch.seq_lens,
            batch.req_to_token,
            batch.req_pool_indices,
            torch.empty((bs, self._near_width()), dtype=torch.int32, device=self._spec.device),
            longest,
        )
        self._write_near(plan, batch)
        self._rows, self._plan = bs, plan

    def init_graph(self, max_bs: int, max_context: int) -> None:
        device = self._spec.device
        self._graph = _Decode(
            torch.ones(max_bs, dtype=torch.int64, device=device),
            torch.empty(0),
            torch.zeros(max_bs, dtype=torch.int64, device=device),
            torch.zeros((max_bs, self._near_width()), dtype=torch.int32, device=device),
            max_context,
        )

    def plan_graph(self, batch: DecodeBatch, bs: int, capture: bool) -> None:
        if self._graph is None:
            raise RuntimeError("init_graph must reserve the buffers before plan_graph fills them")
        kept = self._graph
        kept.seq_lens[:bs].copy_(batch.seq_lens[:bs])
        kept.req_pool_indices[:bs].copy_(batch.req_pool_indices[:bs])
        plan = _Decode(kept.seq_lens[:bs], batch.req_to_token, kept.req_pool_indices[:bs], kept.near[:bs], kept.max_len)
        self._write_near(plan, batch)
        self._rows, self._plan = bs, plan

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
        out = self._run(head_class, q, k, v, scale)
        if target is None:
            return out
        target.put(out)
        return target.out

    def _run(self, head_class: HeadClass, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if scale <= 0.0:
            raise ValueError(f"scale is {scale}: these kernels take the largest logit before they scale it")
        spec, plan = self._spec, self._plan
        if isinstance(plan, _Extend):
            slots, starts = plan.pages[head_class]
            return extend(
                head_class,
                plan.work[head_class, k.shape[1]],
                self._tiling,
                slots,
                starts,
                q,
                k,
                v,
                spec.window,
                spec.sink,
                scale,
            )
        if plan is None:
            raise RuntimeError("run needs a plan: call plan_extend, plan_decode or plan_graph first")
        bs, heads = len(plan.seq_lens), k.shape[1]
        if head_class == "global":
            table, rows, width = plan.req_to_token, plan.req_pool_indices, plan.max_len
        else:
            table, rows, width = plan.near, None, min(plan.near.shape[1], plan.max_len)
        splits = splits_for(bs, heads, width, spec.device)
        limit = table.shape[1]
        return decode(table, rows, table.stride(0), plan.seq_lens, limit, splits, q, k, v, scale)

    def extend_parts(self, head_class: HeadClass, heads: int) -> int:
        """How many parts the planned extend merges where a layer has so many heads; 0 if all tiles are whole."""
        if not isinstance(self._plan, _Extend):
            raise RuntimeError("extend_parts needs a planned extend")
        return self._plan.work[head_class, heads].parts

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

    def _near_width(self) -> int:
        return self._spec.window + self._spec.sink if self._spec.local_widths else 0

    def _write_near(self, plan: _Decode, batch: DecodeBatch) -> None:
        if not self._spec.local_widths:
            return
        starts = torch.arange(len(plan.near), device=plan.near.device) * plan.near.shape[1]
        write_pages(
            near_pages(self._spec),
            plan.near.view(-1),
            starts,
            plan.req_to_token,
            plan.req_pool_indices,
            batch.full_to_local,
            None,
            plan.seq_lens,
        )
