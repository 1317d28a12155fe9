# SPDX-License-Identifier: Apache-2.0
"""What an attention path is given: the shape it is built for, and the batches it plans.

Words of this package. A (layer, KV head) is *global*: its row at position p sees every position <= p. Or it is
*local*: its row sees the *window*, which is the W positions up to and including p, and the *sinks*, which are the
first S positions. Both classes keep K and V in a pool of their own, ``[slots, heads, head_dim]``, one token a slot;
slot 0 is a dummy that belongs to no token. A token has one global slot, ``req_to_token[request, position]``, and one
local slot, ``full_to_local[global slot]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

HeadClass = Literal["global", "local"]
CLASSES: tuple[HeadClass, ...] = ("global", "local")


@dataclass(frozen=True)
class ClassSpec:
    """The shape of a model's attention under its head map, on one rank.

    group: query heads of each KV head.
    head_dim: numbers in one head of a query, key or value.
    global_widths: the distinct numbers of global KV heads that layers have, 0 left out.
    local_widths: the same for local KV heads.
    window: positions that a local row sees up to and including its own.
    sink: first positions that a local row sees besides.
    dtype: of queries and results.
    device: where queries, pools and batches are.
    global_kv_dtype: of the global class's pool, None for ``dtype``.
    local_kv_dtype: of the local class's pool, None for ``dtype``.
    Raises ValueError if a number is too small, a width is repeated, or neither class has a head.
    """

    group: int
    head_dim: int
    global_widths: tuple[int, ...]
    local_widths: tuple[int, ...]
    window: int
    sink: int
    dtype: torch.dtype
    device: torch.device
    global_kv_dtype: torch.dtype | None = None
    local_kv_dtype: torch.dtype | None = None

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

    def kv_dtype(self, head_class: HeadClass) -> torch.dtype:
        """The dtype of a class's pool."""
        return (self.global_kv_dtype if head_class == "global" else self.local_kv_dtype) or self.dtype


@dataclass
class ExtendBatch:
    """Requests that each append rows to a (possibly empty) prefix: B requests, N rows in all.

    Request i owns the rows ``qo_indptr[i]:qo_indptr[i + 1]`` of q, at the positions ``prefix_lens[i]`` to
    ``seq_lens[i] - 1``.

    req_to_token: int32 [R, C] on the device, the global slot of each request row and position.
    req_pool_indices: int64 [B] on the device, each request's row of ``req_to_token``.
    full_to_local: int64 on the device, the local slot of each global slot, 0 where there is none.
    prefix_lens: int32 [B] on the device, tokens before each request's first row.
    seq_lens: int32 [B] on the device, tokens including the rows.
    prefix_lens_cpu: the same as ``prefix_lens``, on the host.
    seq_lens_cpu: the same as ``seq_lens``, on the host.
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

    prefix_lens, prefix_lens_cpu: here the position of each request's first row.
    seq_lens, seq_lens_cpu: here the position of its last row plus 1.
    positions: int32 [N] on the device, the position of each row.
    positions_cpu: the same on the host, one list for each request.
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

    req_to_token, req_pool_indices, full_to_local: as in ExtendBatch.
    seq_lens: int32 or int64 [B] on the device, tokens including the new one.
    seq_lens_cpu: the same on the host, or None where the caller does not know it; a path that needs it then waits for
        the device.
    """

    req_to_token: Tensor
    req_pool_indices: Tensor
    full_to_local: Tensor
    seq_lens: Tensor
    seq_lens_cpu: list[int] | None

    def host_lens(self) -> list[int]:
        """The lengths on the host; waits for the device only if the caller gave none."""
        return self.seq_lens.tolist() if self.seq_lens_cpu is None else self.seq_lens_cpu


def offsets(lens: Sequence[int]) -> list[int]:
    """Where ragged rows of these lengths start, with their total as last entry."""
    return [0, *accumulate(lens)]


def window_start(prefix: int, window: int) -> int:
    """First position inside the window of the row at position ``prefix``."""
    return max(0, prefix - window + 1)
