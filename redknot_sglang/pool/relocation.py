# SPDX-License-Identifier: Apache-2.0
"""Relocation jobs: KV of segments on its way to the slots of a request, done on the forward stream.

Jobs are made while the scheduler admits a request and run at the start of that request's forward. Everything that
writes KV runs on the forward stream, so a source slot that the scheduler evicts in between is still intact by then;
jobs run in the order in which they were made, since a later job's target may be an earlier one's evicted source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.kernels.kv_layers import KVLayers
from redknot_sglang.kernels.relocate import Rotation, relocate


@dataclass(frozen=True)
class ClassMove:
    """Moves within one head class: from slots `source`, computed at positions `origin`, to slots `target` for
    positions `position`; each int64 [n].
    """

    source: Tensor
    target: Tensor
    origin: Tensor
    position: Tensor


@dataclass(frozen=True)
class Relocation:
    """What one chunk of one request needs moved before its forward."""

    global_rows: ClassMove
    local_rows: ClassMove


class RelocationQueue:
    """Jobs between admission and the next forward."""

    def __init__(self) -> None:
        self._jobs: list[Relocation] = []
        self._layers: list[KVLayers] | None = None

    def add(self, job: Relocation) -> None:
        """Queue a job for the next forward."""
        self._jobs.append(job)

    def run(self, pool: Any, rotation: Rotation) -> None:
        """Do all jobs on the current stream, over a HeadClassPool; a no-op if there are none."""
        jobs, self._jobs = self._jobs, []
        if jobs and self._layers is None:
            classes = pool.full_kv_pool, pool.swa_kv_pool
            self._layers = [KVLayers(buffers.k, buffers.v) for buffers in classes]
        for job in jobs:
            for move, layers in zip((job.global_rows, job.local_rows), self._layers or (), strict=True):
                for indices in (move.source, move.target, move.origin, move.position):
                    if indices.is_cuda:
                        # Made on the scheduler's stream, whose next tensors must not take their memory meanwhile.
                        indices.record_stream(torch.cuda.current_stream())
                cos, sin = rotation.turn(move.origin, move.position)
                relocate(layers, move.source, move.target, cos, sin, rotation.is_neox)


def move_rows(
    slots: Tensor, targets: Tensor, origins: Tensor, positions: Tensor, local: Tensor, mapping: Tensor
) -> Relocation:
    """The job that moves rows from global slots `slots` to `targets`, and the rows in `local` in the local class too.

    slots, targets, origins, positions: int64 [n]; local: int64 [m], indices into them; mapping: local slot of each
    global slot.
    """
    chosen = slots[local]
    if mapping.device.type == "cpu":
        assert bool((mapping[chosen] > 0).all()), "a relocated row's local KV is not in the pool"
    return Relocation(
        ClassMove(slots, targets, origins, positions),
        ClassMove(mapping[chosen], mapping[targets[local]], origins[local], positions[local]),
    )
