# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's wrappers as this package uses them: built, sized and planned without waiting for the device.

Written for flashinfer 0.6.15. Scale 1 is planned and a layer's own scale passed as ``q_scale`` at run, so
that one plan serves all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .batch import ClassSpec, HeadClass
from .class_heads import Target
from .move_heads import put_heads

HEAD_DIMS = (64, 128, 256)
# A plan's integers, on the device and pinned on the host: about 13 bytes per tile of rows and 4 per row.
# FlashInfer's own 8 MiB would be multiplied by classes and widths.
_INT_BYTES = 2 << 20
# Workspaces in use, by device, class and size.
_workspaces: WeakValueDictionary[tuple[torch.device, HeadClass, int], Tensor] = WeakValueDictionary()


def workspace_bytes(spec: ClassSpec, widths: tuple[int, ...], max_bs: int) -> int:
    """Bytes of a workspace for the partial results of any plan.

    spec: the shape.
    widths: KV heads of the layers that share the workspace.
    max_bs: requests of the largest decode graph, 0 without graphs.

    FlashInfer keeps head_dim + 1 floats for each query head, row and part of a split list, in tiles of ``tile`` packed
    rows. It splits only into what two blocks per processor can hold at once; a graph is laid out for that or, if they
    are more, for its requests' tiles. (``PrefillPlanImpl`` and ``PrefillSplitQOKVIndptr`` in FlashInfer's
    scheduler.cuh.)
    """
    blocks = 2 * torch.cuda.get_device_properties(spec.device).multi_processor_count
    tile = 128 if spec.head_dim < 256 else 64
    split_rows = spec.group * blocks * tile
    graph_tile = 16 if spec.group <= 16 else 64 if spec.group <= 64 or spec.head_dim >= 256 else 128
    tiles = -(-max_bs * spec.group // graph_tile) + max_bs
    graph_rows = max(spec.group * n * max(blocks // n, tiles) for n in widths) * graph_tile
    rows = max(split_rows, graph_rows if max_bs else 0)
    return rows * (spec.head_dim + 1) * 4 + 4096


def workspace(size: int, device: torch.device) -> Tensor:
    """A workspace of ``size`` bytes; FlashInfer asks for zeros at first use."""
    return torch.zeros(size, dtype=torch.uint8, device=device)


def workspace_of(spec: ClassSpec, head_class: HeadClass) -> Tensor:
    """The workspace of a class, uint8, for plans without graphs.

    All paths of one shape share it as long as one of them is in use: a class's extend and its decode never run at the
    same time.
    """
    size = workspace_bytes(spec, spec.widths(head_class), 0)
    key = spec.device, head_class, size
    space = _workspaces.get(key)
    if space is None:
        space = _workspaces[key] = workspace(size, spec.device)
    return space


def run_wrapper(
    wrapper: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, target: Target | None, v_scale: float = 1.0
) -> Tensor:
    """Run a planned wrapper over a class's pool.

    wrapper: FlashInfer's, planned.
    q, k, v, target, v_scale: as in ``AttentionPath.run``.
    scale: logits are this times the product of q and what is stored.
    Returns what ``AttentionPath.run`` returns.
    """
    view = None if target is None else target.contiguous_view
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if view is None else view
    wrapper.run(q, (k.unsqueeze(1), v.unsqueeze(1)), q_scale=scale, v_scale=v_scale, out=out)
    if target is None:
        return out
    if view is None:
        put_heads(out, target)
    return target.out


class _PinnedBuffer:
    """Keeps a plan from overwriting pinned integers that the device has not fetched yet.

    A FlashInfer plan writes its schedule into the wrapper's one pinned buffer and copies it asynchronously. On a busy
    device the copy can still be queued when the host plans the next batch; the queued batch would then run with that
    batch's schedule: wrong rows, or a kernel that never ends.
    """

    def __init__(self) -> None:
        self._fetched: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        if self._fetched is not None:
            self._fetched.synchronize()

    def __exit__(self, *failure: object) -> None:
        self._fetched = self._fetched or torch.cuda.Event()
        self._fetched.record()


@dataclass
class Prefill:
    """An extend of one class and width.

    spec: the shape.
    stored: dtype of the class's pool.
    width: KV heads of the layers that it serves.
    wrapper: FlashInfer's.
    pinned: guards the wrapper's pinned buffer.
    """

    spec: ClassSpec
    stored: torch.dtype
    width: int
    wrapper: Any
    pinned: _PinnedBuffer = field(default_factory=_PinnedBuffer)

    @classmethod
    def of(cls, spec: ClassSpec, head_class: HeadClass, width: int, space: Tensor) -> Prefill:
        """Build the wrapper of this class and width over the workspace ``space``."""
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        wrapper = BatchPrefillWithPagedKVCacheWrapper(space, "NHD", backend="fa2")
        wrapper.reset_workspace_buffer(space, torch.empty(_INT_BYTES, dtype=torch.uint8, device=space.device))
        return cls(spec, spec.kv_dtype(head_class), width, wrapper)

    def plan(self, qo_indptr: Tensor, indptr: Tensor, slots: Tensor, window_left: int) -> None:
        """Plan a batch.

        qo_indptr: int32 [B + 1] on the host, first row of each request.
        indptr: int32 [B + 1] on the host, where each request's list begins.
        slots: int32 on the device, the page lists.
        window_left: positions before its own that a row sees, -1 for all.
        """
        spec = self.spec
        with self.pinned:
            self.wrapper.plan(
                qo_indptr,
                indptr,
                slots,
                torch.ones(len(indptr) - 1, dtype=torch.int32),
                spec.group * self.width,
                self.width,
                spec.head_dim,
                1,
                causal=True,
                sm_scale=1.0,
                window_left=window_left,
                q_data_type=spec.dtype,
                kv_data_type=self.stored,
            )


@dataclass
class Decode:
    """A decode of one class and width: of any batch, or for a graph of one batch size in fixed buffers.

    spec: the shape.
    stored: dtype of the class's pool.
    width: KV heads of the layers that it serves.
    wrapper: FlashInfer's.
    planned: whether it was planned before, which loads the kernels.
    pinned: guards the wrapper's pinned buffer.
    """

    spec: ClassSpec
    stored: torch.dtype
    width: int
    wrapper: Any
    planned: bool = False
    pinned: _PinnedBuffer = field(default_factory=_PinnedBuffer)

    @classmethod
    def of(cls, spec: ClassSpec, head_class: HeadClass, width: int, space: Tensor) -> Decode:
        """Build the wrapper of this class and width over the workspace ``space``."""
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        wrapper = BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=True, backend="fa2")
        wrapper.reset_workspace_buffer(space, torch.empty(_INT_BYTES, dtype=torch.uint8, device=space.device))
        return cls(spec, spec.kv_dtype(head_class), width, wrapper)

    @classmethod
    def for_graph(
        cls, spec: ClassSpec, head_class: HeadClass, width: int, space: Tensor, starts: Tensor, slots: Tensor
    ) -> Decode:
        """Build the wrapper of a graph, whose plans all fill the same buffers.

        spec: the shape.
        head_class: the class.
        width: KV heads of the layers that it serves.
        space: the workspace.
        starts: int32 [bs + 1] on the device, where each request's list begins.
        slots: int32 on the device, the page lists.
        """
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        bs = len(starts) - 1
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            space,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=starts,
            paged_kv_indices_buffer=slots,
            paged_kv_last_page_len_buffer=torch.ones(bs, dtype=torch.int32, device=space.device),
            backend="fa2",
        )
        # There are many graphs, and all that a plan writes is some ints per block and request.
        blocks = 2 * torch.cuda.get_device_properties(spec.device).multi_processor_count
        ints = 4 * max(blocks, bs * (spec.group // 16 + 2)) + 4 * bs + 1024
        wrapper.reset_workspace_buffer(space, torch.empty(4 * ints, dtype=torch.uint8, device=space.device))
        return cls(spec, spec.kv_dtype(head_class), width, wrapper)

    def plan(self, indptr: Tensor, starts: Tensor, slots: Tensor) -> None:
        """Plan a batch.

        indptr: int32 [B + 1] on the host, where each request's list begins.
        starts: the same on the device.
        slots: int32 on the device, the page lists.
        """
        from flashinfer import fast_decode_plan

        spec, bs = self.spec, len(indptr) - 1
        shape = (spec.group * self.width, self.width, spec.head_dim, 1)
        options: dict[str, Any] = {
            "q_data_type": spec.dtype,
            "kv_data_type": self.stored,
            "sm_scale": 1.0,
        }
        if not self.planned:
            ones = torch.ones(bs, dtype=torch.int32)
            with self.pinned:
                self.wrapper.plan(indptr, slots, ones, *shape, **options)
            self.planned = True
            return
        # The plan above loads the kernels; this one only schedules, and takes the lists where they are.
        ones = torch.ones(bs, dtype=torch.int32, device=slots.device)
        with self.pinned:
            fast_decode_plan(self.wrapper, starts, slots, ones, *shape, **options, global_override_indptr_cpu=indptr)
