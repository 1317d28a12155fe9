# SPDX-License-Identifier: Apache-2.0
"""Path "flashinfer": one FlashInfer plan per class and width, over page lists that are written on the device.

Extend is FlashInfer's paged FA2 prefill, with the window built in and the sinks folded in after it. Decode is
its tensor-core decode; for one row, sinks and window are nothing but a shorter page list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, check_rows, offsets
from .class_heads import Target
from .flashinfer_wrappers import Decode, Prefill, workspace, workspace_bytes
from .page_list import ALL_PAGES, PageRule, near_pages, window_pages, write_pages
from .sink_fold import FoldPlan, sink_fold
from .trial import trial_error

HEAD_DIMS = (64, 128, 256)
_CLASSES: tuple[HeadClass, ...] = ("global", "local")
_Key = tuple[HeadClass, int]


@dataclass(frozen=True)
class _GraphLists:
    """Persistent page lists of a class: ``starts`` int32 [max_bs + 1] and ``slots`` int32, for any batch
    size.
    """

    starts: Tensor
    slots: Tensor


class FlashInferPath:
    """Attention by FlashInfer's paged wrappers, bf16 or fp16, head dimension 64, 128 or 256.

    The classes have a workspace each, so that a caller may run them on two streams.
    """

    name = "flashinfer"

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self._workspace = {
            c: workspace(workspace_bytes(spec, spec.widths(c), 0), spec.device) for c in _CLASSES if spec.widths(c)
        }
        self._extend = {(c, n): Prefill.of(spec, n, self._workspace[c]) for c, n in self._keys()}
        self._decode = {(c, n): Decode.of(spec, n, self._workspace[c]) for c, n in self._keys()}
        self._active: Mapping[_Key, Prefill | Decode] = {}
        self._fold: FoldPlan | None = None
        self._rows = 0
        self._graph_lists: dict[HeadClass, _GraphLists] = {}
        self._graph_space: dict[HeadClass, Tensor] = {}
        self._graphs: dict[tuple[int, HeadClass, int], Decode] = {}
        self._max_context = 0

    @staticmethod
    def why_not(spec: ClassSpec, extend: bool = True) -> str | None:
        """The reason why this path cannot serve ``spec``, or None; without ``extend``, why it cannot decode. A first call
        may compile FlashInfer's kernels, a minute for each phase.
        """
        if spec.head_dim not in HEAD_DIMS:
            return f"it serves head_dim {', '.join(map(str, HEAD_DIMS))}, the model has {spec.head_dim}"
        if spec.dtype not in (torch.float16, torch.bfloat16):
            return f"it serves float16 and bfloat16, not {spec.dtype}"
        return trial_error(FlashInferPath, spec, extend)

    def plan_extend(self, batch: ExtendBatch) -> None:
        spec = self._spec
        qo_indptr = torch.tensor(batch.qo_indptr, dtype=torch.int32)
        for head_class in self._workspace:
            local = head_class == "local"
            rule = window_pages(spec) if local else ALL_PAGES
            indptr = _indptr(rule, batch.prefix_lens_cpu, batch.seq_lens_cpu)
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
                self._extend[head_class, width].plan(qo_indptr, indptr, slots, spec.window - 1 if local else -1)
        self._fold = FoldPlan.of(batch, spec)
        self._active, self._rows = self._extend, batch.qo_indptr[-1]

    def plan_decode(self, batch: DecodeBatch) -> None:
        spec, lens = self._spec, batch.host_lens()
        for head_class in self._workspace:
            rule = self._decode_rule(head_class)
            indptr = _indptr(rule, [n - 1 for n in lens], lens)
            slots = torch.empty(int(indptr[-1]), dtype=torch.int32, device=spec.device)
            starts = indptr.to(spec.device, non_blocking=True)
            _write_decode(rule, slots, starts, batch, len(lens))
            for width in spec.widths(head_class):
                self._decode[head_class, width].plan(indptr, starts, slots)
        self._fold = None
        self._active, self._rows = self._decode, len(lens)

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
        spec = self._spec
        wrapper = self._active[head_class, k.shape[1]].wrapper
        pages = k.unsqueeze(1), v.unsqueeze(1)
        fold = self._fold if head_class == "local" else None
        view = target.contiguous_view if target is not None and fold is None else None
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if view is None else view
        if fold is not None:
            _, lse = wrapper.run(q, pages, q_scale=scale, out=out, return_lse=True)
            sink_fold(out, lse, "rows_heads", "2", q, k, v, fold, spec.window, scale, target)
        else:
            wrapper.run(q, pages, q_scale=scale, out=out)
            if target is not None and view is None:
                target.put(out)
        return out if target is None else target.out

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

    def plan_graph(self, batch: DecodeBatch, bs: int, capture: bool) -> None:
        if not self._graph_lists:
            raise RuntimeError("init_graph must reserve the buffers before plan_graph fills them")
        spec, lens = self._spec, batch.host_lens()[:bs]
        if max(lens) > self._max_context:
            raise ValueError(f"a request has {max(lens)} tokens, init_graph was told {self._max_context}")
        active: dict[_Key, Decode] = {}
        for head_class, lists in self._graph_lists.items():
            rule = self._decode_rule(head_class)
            indptr = _indptr(rule, [n - 1 for n in lens], lens)
            starts = lists.starts[: bs + 1]
            starts.copy_(indptr, non_blocking=True)
            _write_decode(rule, lists.slots, starts, batch, bs)
            for width in spec.widths(head_class):
                key = (bs, head_class, width)
                if key not in self._graphs:
                    space = self._graph_space[head_class]
                    self._graphs[key] = Decode.for_graph(spec, width, space, starts, lists.slots)
                self._graphs[key].plan(indptr, starts, lists.slots)
                active[head_class, width] = self._graphs[key]
        self._fold = None
        self._active, self._rows = active, bs

    def _keys(self) -> list[_Key]:
        return [(c, width) for c in _CLASSES for width in self._spec.widths(c)]

    def _decode_rule(self, head_class: HeadClass) -> PageRule:
        return near_pages(self._spec) if head_class == "local" else ALL_PAGES


def _indptr(rule: PageRule, prefixes: list[int], lens: list[int]) -> Tensor:
    """Where each request's list starts, int32 [B + 1] on the host."""
    return torch.tensor(offsets(list(map(rule.count, prefixes, lens))), dtype=torch.int32)


def _write_decode(rule: PageRule, slots: Tensor, starts: Tensor, batch: DecodeBatch, bs: int) -> None:
    write_pages(
        rule,
        slots,
        starts,
        batch.req_to_token,
        batch.req_pool_indices[:bs],
        batch.full_to_local,
        None,
        batch.seq_lens[:bs],
    )
