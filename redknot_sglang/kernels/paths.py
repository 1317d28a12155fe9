# SPDX-License-Identifier: Apache-2.0
"""What an attention path is: a way to attend over the two classes, for extends or for decodes.

A path is built once for a ``ClassSpec``, plans once per forward, and runs once per layer and class. ``select.py`` has
the table of all paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .batch import CLASSES, ClassSpec, DecodeBatch, ExtendBatch, HeadClass
from .class_heads import Target

# Requests that a prefill graph has room for. A run of adjacent rows counts as one, so this is enough for the segments
# whose repaired rows fit into a graph.
MAX_RUNS = 64


class AttentionPath(Protocol):
    """What extend paths and decode paths have in common.

    name: what logs and the table call it.
    """

    name: ClassVar[str]

    def __init__(self, spec: ClassSpec) -> None:
        """Build the path for this shape. Call it only if ``why_not`` gave None."""

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """Why this path cannot serve ``spec`` on this machine, as a sentence that begins with "it"; None if it can."""

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
        """Attend in one layer and class, over the latest plan. Query head h reads KV head h // G, G = ``spec.group``.

        head_class: the class whose pool k and v are.
        q: [N, G * n, D] in ``spec.dtype``, one row for each planned row; rows and heads may be strided.
        k: [slots, n, D] in the class's dtype, the layer's keys.
        v: [slots, n, D] in the class's dtype, the layer's values.
        scale: logits are ``scale * q.k``.
        target: where to write the result; None for a new tensor.
        k_scale: stored keys times this are the keys.
        v_scale: stored values times this are the values.
        Returns [N, G * n, D] in q's dtype; with a target, writes that to the class's heads and returns ``target.out``.
        Raises ValueError if q has another number of rows than the plan, or for a scale that the path cannot serve.
        """


class ExtendPath(AttentionPath, Protocol):
    """A path for requests that append rows.

    scattered: whether it plans a ScatteredBatch as well.
    """

    scattered: ClassVar[bool]

    def plan_extend(self, batch: ExtendBatch) -> None:
        """Prepare the following ``run`` calls for the rows of ``batch``."""


@runtime_checkable
class RecordedExtendPath(ExtendPath, Protocol):
    """An extend path that can plan in persistent buffers, so that a CUDA graph may record ``run``."""

    def init_extend_graphs(self, max_rows: int, max_context: int, max_runs: int = MAX_RUNS) -> None:
        """Reserve the buffers.

        max_rows: rows of the largest graph.
        max_context: tokens of the longest request.
        max_runs: requests that a graph has room for.
        """

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        """Plan for a graph, before its capture or a replay. q may have more rows than the batch then; results of those
        rows are unspecified, but never NaN or infinite.

        batch: the requests.
        rows: rows of the graph.
        Returns whether a graph can serve the batch; if not, the plan before stays.
        """


class DecodePath(AttentionPath, Protocol):
    """A path for requests of one row each."""

    def plan_decode(self, batch: DecodeBatch) -> None:
        """Prepare the following ``run`` calls for one row of each request."""

    def init_graph(self, max_bs: int, max_context: int) -> None:
        """Reserve the persistent buffers of decode CUDA graphs.

        max_bs: requests of the largest graph.
        max_context: tokens of the longest request.
        Raises RuntimeError if the path has no graphs.
        """

    def plan_graph(self, batch: DecodeBatch) -> None:
        """Plan in the persistent buffers, before the capture or a replay of the graph for as many requests.

        batch: exactly the requests of the graph.
        Raises RuntimeError without ``init_graph``, ValueError for a request longer than it was told.
        """


def check_rows(q: Tensor, rows: int) -> None:
    """Raise ValueError unless q has as many rows as were planned."""
    if q.shape[0] != rows:
        raise ValueError(f"q has {q.shape[0]} rows, the latest plan has {rows}: plan this batch before running it")


def check_unscaled(k_scale: float, v_scale: float) -> None:
    """Raise ValueError if keys or values have a scale: for paths that read them as they are stored."""
    if k_scale != 1.0 or v_scale != 1.0:
        raise ValueError(
            f"k_scale is {k_scale} and v_scale {v_scale}, but this attention path reads keys and values as they are "
            "stored: use scales of 1, or the torch path"
        )


def needs_cuda(spec: ClassSpec) -> str | None:
    """Why a path for GPUs cannot serve ``spec``; None on a CUDA device."""
    return None if spec.device.type == "cuda" else f"it needs a CUDA device, this is {spec.device.type}"


def needs_head_dim(spec: ClassSpec, head_dims: tuple[int, ...]) -> str | None:
    """Why a path that has kernels of these head dimensions cannot serve ``spec``, or None."""
    if spec.head_dim in head_dims:
        return None
    return f"it serves head_dim {', '.join(map(str, head_dims))}, the model has {spec.head_dim}"


def needs_16_bits(spec: ClassSpec) -> str | None:
    """Why a path for 16-bit numbers cannot serve ``spec``, or None."""
    if spec.dtype in (torch.float16, torch.bfloat16):
        return None
    return f"it serves float16 and bfloat16, not {spec.dtype}"


def needs_stored_as_queries(spec: ClassSpec, others: Sequence[torch.dtype] = ()) -> str | None:
    """Why a path that reads K and V as they are stored cannot serve ``spec``; None if they have the queries' dtype.

    others: dtypes from which the path can convert besides.
    """
    for head_class in CLASSES:
        stored = spec.kv_dtype(head_class)
        if spec.widths(head_class) and stored not in (spec.dtype, *others):
            more = f" or {', '.join(map(str, others))}" if others else ", and without a scale"
            return (
                f"it reads keys and values in the queries' dtype, {spec.dtype}{more}; "
                f"those of {head_class} heads are stored as {stored}"
            )
    return None
