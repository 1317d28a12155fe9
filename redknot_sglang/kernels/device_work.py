# SPDX-License-Identifier: Apache-2.0
"""How the Triton extend kernel is launched, and its work on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import ExtendBatch, ScatteredBatch
from .extend_work import Work
from .host_copy import to_device


@dataclass(frozen=True)
class Tiling:
    """How the kernel is launched.

    packed: rows of a tile times query heads of a group.
    keys: keys that a program takes at a time.
    warps: warps of a program.
    stages: steps whose loads are under way at the same time.
    """

    packed: int
    keys: int
    warps: int
    stages: int

    @classmethod
    def of(cls, head_dim: int, dtype: torch.dtype) -> Tiling:
        """Sized so that the tiles of q, k and v fit a Hopper, Ampere or Ada SM.

        Triton divides the stages among two loads in a row, of page ids and of the pages. With 3 the pages of a step
        are asked for when the step before has done its softmax; with 5, a whole step earlier.
        """
        if dtype == torch.float32:
            return cls(32, 32, 4, 1) if head_dim > 64 else cls(64, 32, 4, 2)
        if head_dim > 128:
            return cls(64, 32, 8, 3)
        return cls(128, 64, 8, 5)


@dataclass(frozen=True)
class DeviceWork:
    """The work of an extend in one class, on the device.

    items: int32 [I, 7], with the fields of ``extend_work.Item``.
    merges: int32 [M, 4], with the fields of ``extend_work.Merge``.
    parts: parts of all tiles together.
    most: parts of the tile that has most.
    positions: int32 [N], the position of each row where rows are scattered; else None.
    prefix_lens: int32 [B], position of each request's first row.
    recorded: whether a graph reads it, whose q may have more rows than the batch.
    """

    items: Tensor
    merges: Tensor
    parts: int
    most: int
    positions: Tensor | None
    prefix_lens: Tensor
    recorded: bool = False

    @classmethod
    def of(cls, work: Work, batch: ExtendBatch) -> DeviceWork:
        """Copy the work of a batch to the device; nothing waits."""
        device = batch.seq_lens.device
        items, merges = (to_device(rows, device, torch.int32) for rows in (work.items, work.merges))
        most = max((merge.parts for merge in work.merges), default=0)
        positions = batch.positions if isinstance(batch, ScatteredBatch) else None
        return cls(items, merges, work.parts, most, positions, batch.prefix_lens)
