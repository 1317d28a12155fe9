# SPDX-License-Identifier: Apache-2.0
"""What an attention path is given: the shape it is built for, and the batches it plans.

Vocabulary of this package. A (layer, KV head) is *global*, its row at position p sees every position <= p, or
*local*, its row sees the *window* (the W positions up to and including p) and the *sinks* (the first S
positions). Both classes keep KV in their own pool, page size 1, ``[slots, heads, head_dim]`` with slot 0 as
dummy. A token has one global slot, ``req_to_token[request, position]``, and one local slot,
``full_to_local[global slot]``.

A *path* is one implementation of attention over such batches. It plans once per forward, runs once per
(layer, class).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .class_heads import Target

HeadClass = Literal["global", "local"]


@dataclass(frozen=True)
class ClassSpec:
    """The shape of a model's attention under its head map, on one rank.

    ``global_widths`` and ``local_widths`` are the distinct numbers of KV heads > 0 that a layer has in that
    class. Raises ValueError if a field makes no sense.
    """

    group: int
    head_dim: int
    global_widths: tuple[int, ...]
    local_widths: tuple[int, ...]
    window: int
    sink: int
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        for name, value, least in (
            ("group", self.group, 1),
            ("head_dim", self.head_dim, 1),
            ("sink", self.sink, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, it must be at least {least}")
        if self.local_widths and self.window < 1:
            raise ValueError(f"window is {self.window}: local heads need a window of at least 1, their own token")
        for widths in (self.global_widths, self.local_widths):
            if len(set(widths)) != len(widths) or any(n < 1 for n in widths):
                raise ValueError(f"widths {widths} must be distinct head counts of at least 1")
        if not self.global_widths and not self.local_widths:
            raise ValueError("there is no head in either class: give global_widths or local_widths")

    def widths(self, head_class: HeadClass) -> tuple[int, ...]:
        """The distinct KV head counts of a class."""
        return self.global_widths if head_class == "global" else self.local_widths


@dataclass
class ExtendBatch:
    """Requests that each append rows to a (possibly empty) prefix.

    ``req_to_token`` int32 [R, C]; ``req_pool_indices`` int64 [B]; ``full_to_local`` int64, indexed by global
    slot, 0 = none; ``prefix_lens``, ``seq_lens`` int32 [B]; all on the device. ``*_cpu`` hold the same
    lengths on the host. Request i owns the rows ``qo_indptr[i]:qo_indptr[i + 1]`` of q, at the positions
    ``prefix_lens[i] .. seq_lens[i] - 1``.
    """

    req_to_token: Tensor
    req_pool_indices: Tensor
    full_to_local: Tensor
    prefix_lens: Tensor
    seq_lens: Tensor
    prefix_lens_cpu: list[int]
    seq_lens_cpu: list[int]

    @property
    def qo_lens(self) -> list[int]:
        """Rows of each request."""
        return [seq - prefix for prefix, seq in zip(self.prefix_lens_cpu, self.seq_lens_cpu, strict=True)]

    @property
    def qo_indptr(self) -> list[int]:
        """First row of each request in q, and the number of rows as last entry."""
        return offsets(self.qo_lens)


@dataclass
class ScatteredBatch(ExtendBatch):
    """Requests whose rows stand at scattered positions, ascending in each request.

    ``prefix_lens`` is the position of a request's first row, ``seq_lens`` that of its last one plus 1.
    ``positions`` int32 [N], on the device, and ``positions_cpu`` on the host, one list for each request.
    """

    positions: Tensor
    positions_cpu: list[list[int]]

    @property
    def qo_lens(self) -> list[int]:
        """Rows of each request."""
        return [len(rows) for rows in self.positions_cpu]


@dataclass
class DecodeBatch:
    """Requests that each have one row, at position ``seq_lens - 1``.

    ``seq_lens`` int32 or int64 [B] counts the new token, on the device; ``seq_lens_cpu`` is the same on the
    host, or None where the caller does not know it (a path that needs it then waits for the device). Other
    fields as in ExtendBatch.
    """

    req_to_token: Tensor
    req_pool_indices: Tensor
    full_to_local: Tensor
    seq_lens: Tensor
    seq_lens_cpu: list[int] | None

    def host_lens(self) -> list[int]:
        """The lengths on the host; waits for the device only if the caller gave none."""
        return self.seq_lens.tolist() if self.seq_lens_cpu is None else self.seq_lens_cpu


class Path(Protocol):
    """One implementation of attention over the two classes."""

    name: str

    def plan_extend(self, batch: ExtendBatch) -> None:
        """Prepare the following ``run`` calls for the rows of ``batch``."""

    def plan_decode(self, batch: DecodeBatch) -> None:
        """Prepare the following ``run`` calls for one row per request."""

    def run(
        self,
        head_class: HeadClass,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        target: Target | None = None,
    ) -> Tensor:
        """Attend in one layer and class, over the latest plan.

        q [N, G * n, D], may be strided; query head h reads KV head h // G. k, v [slots, n, D], the layer's
        pool of that class. Logits are ``scale * q.k``. Returns
        [N, G * n, D] in q's dtype; with a target, writes it there and returns the target's ``out``.
        """

    def init_graph(self, max_bs: int, max_context: int) -> None:
        """Reserve the persistent buffers of decode CUDA graphs, for up to ``max_bs`` requests of
        ``max_context`` tokens."""

    def plan_graph(self, batch: DecodeBatch, bs: int, capture: bool) -> None:
        """Plan a decode of exactly ``bs`` requests in the persistent buffers, before a capture or before a
        replay."""


@runtime_checkable
class RecordedPath(Path, Protocol):
    """A path that can plan extends in persistent buffers, so that a graph may record ``run``."""

    def init_extend_graphs(self, max_rows: int, max_context: int) -> None:
        """Reserve the buffers of graphs of up to ``max_rows`` rows and requests of ``max_context`` tokens."""

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        """Plan for a graph of ``rows`` rows, before its capture or a replay; False, and the plan stays, if no graph can
        serve the batch. q may have more rows than the batch then; what comes out for those is numbers.
        """


def offsets(lens: Sequence[int]) -> list[int]:
    """Exclusive prefix sums with the total as last entry: where ragged rows of these lengths start."""
    return [0, *accumulate(lens)]


def window_start(prefix: int, window: int) -> int:
    """First position inside the window of the row at position ``prefix``."""
    return max(0, prefix - window + 1)


def check_rows(q: Tensor, rows: int) -> None:
    """Raise ValueError unless q has as many rows as were planned."""
    if q.shape[0] != rows:
        raise ValueError(f"q has {q.shape[0]} rows, the latest plan has {rows}: plan this batch before running it")
