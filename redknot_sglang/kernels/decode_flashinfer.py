# SPDX-License-Identifier: Apache-2.0
"""Decode path "flashinfer": FlashInfer's tensor-core decode, one plan per class and width.

For one row, sinks and window are nothing but a shorter page list, so that no mask is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .batch import CLASSES, ClassSpec, DecodeBatch, HeadClass
from .class_heads import Target
from .flashinfer_wrappers import HEAD_DIMS, Decode, run_wrapper, workspace, workspace_bytes, workspace_of
from .page_list import ALL_PAGES, PageRule, list_starts, near_pages, write_pages
from .paths import check_rows, needs_16_bits, needs_cuda, needs_head_dim, needs_stored_as_queries
from .stored import FP8
from .trial import decode_trial_error


@dataclass(frozen=True)
class _GraphLists:
    """Persistent page lists of a class.

    starts: int32 [max_bs + 1], where each request's list begins.
    slots: int32, all lists.
    """

    starts: Tensor
    slots: Tensor


class FlashInferDecode:
    """Decode by FlashInfer, bf16 or fp16, head dimension 64, 128 or 256; pools of that dtype, or of 8-bit floats with scales.

    The classes have a workspace each, so that a caller may run them on two streams.
    """

    name: ClassVar[str] = "flashinfer"

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self._workspace = {c: workspace_of(spec, c) for c in CLASSES if spec.widths(c)}
        self._wrappers = {(c, n): Decode.of(spec, c, n, self._workspace[c]) for c in CLASSES for n in spec.widths(c)}
        self._planned: Mapping[tuple[HeadClass, int], Decode] = {}
        self._rows = 0
        self._graph_lists: dict[HeadClass, _GraphLists] = {}
        self._graph_space: dict[HeadClass, Tensor] = {}
        self._graphs: dict[tuple[int, HeadClass, int], Decode] = {}
        self._max_context = 0

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
            or decode_trial_error(FlashInferDecode, spec)
        )

    def plan_decode(self, batch: DecodeBatch) -> None:
        spec, lens = self._spec, batch.host_lens()
        for head_class in self._workspace:
            rule = self._rule(head_class)
            indptr = list_starts(rule, [n - 1 for n in lens], lens)
            slots = torch.empty(int(indptr[-1]), dtype=torch.int32, device=spec.device)
            starts = indptr.to(spec.device, non_blocking=True)
            _write(rule, slots, starts, batch)
            for width in spec.widths(head_class):
                self._wrappers[head_class, width].plan(indptr, starts, slots)
        self._planned, self._rows = self._wrappers, len(lens)

    def init_graph(self, max_bs: int, max_context: int) -> None:
        spec, device = self._spec, self._spec.device
        self._max_context = max_context
        self._graphs = {}
        for head_class, space in self._workspace.items():
            longest = max_context
            if head_class == "local":
                longest = min(max_context, spec.window + spec.sink)
            self._graph_lists[head_class] = _GraphLists(
                torch.zeros(max_bs + 1, dtype=torch.int32, device=device),
                torch.zeros(max_bs * longest, dtype=torch.int32, device=device),
            )
            size = workspace_bytes(spec, spec.widths(head_class), max_bs)
            self._graph_space[head_class] = space if len(space) >= size else workspace(size, device)

    def plan_graph(self, batch: DecodeBatch) -> None:
        if not self._graph_lists:
            raise RuntimeError("init_graph must reserve the buffers before plan_graph fills them")
        spec, lens = self._spec, batch.host_lens()
        if max(lens) > self._max_context:
            raise ValueError(f"a request has {max(lens)} tokens, init_graph was told {self._max_context}")
        bs = len(lens)
        planned: dict[tuple[HeadClass, int], Decode] = {}
        for head_class, lists in self._graph_lists.items():
            rule = self._rule(head_class)
            indptr = list_starts(rule, [n - 1 for n in lens], lens)
            starts = lists.starts[: bs + 1]
            starts.copy_(indptr, non_blocking=True)
            _write(rule, lists.slots, starts, batch)
            for width in spec.widths(head_class):
                key = (bs, head_class, width)
                if key not in self._graphs:
                    space = self._graph_space[head_class]
                    self._graphs[key] = Decode.for_graph(spec, head_class, width, space, starts, lists.slots)
                self._graphs[key].plan(indptr, starts, lists.slots)
                planned[head_class, width] = self._graphs[key]
        self._planned, self._rows = planned, bs

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
        wrapper = self._planned[head_class, k.shape[1]].wrapper
        return run_wrapper(wrapper, q, k, v, scale * k_scale, target, v_scale)

    def _rule(self, head_class: HeadClass) -> PageRule:
        return near_pages(self._spec) if head_class == "local" else ALL_PAGES


def _write(rule: PageRule, slots: Tensor, starts: Tensor, batch: DecodeBatch) -> None:
    tables = batch.req_to_token, batch.req_pool_indices, batch.full_to_local
    write_pages(rule, slots, starts, *tables, None, batch.seq_lens)
