# SPDX-License-Identifier: Apache-2.0
"""Relocation: KV of cached documents is copied to the slots of a request, its keys turned to their new positions.

Jobs are made while the scheduler admits a request, and run at the start of that request's forward. All that writes KV
runs on the forward's CUDA stream, so a source slot that the scheduler gives away in between is still intact by then. Jobs
run in the order in which they were made, since a later job may write where an earlier one reads.
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
    """Moves of n rows within one head class; all fields int64 [n].

    source: slots to read.
    target: slots to write.
    origin: positions at which the rows were computed.
    position: positions that they have in the request.
    """

    source: Tensor
    target: Tensor
    origin: Tensor
    position: Tensor


@dataclass(frozen=True)
class Relocation:
    """The moves that one chunk of one request needs before its forward, in each head class."""

    global_rows: ClassMove
    local_rows: ClassMove


class RelocationQueue:
    """Relocations that wait for the next forward."""

    def __init__(self) -> None:
        self._jobs: list[Relocation] = []
        self._layers: list[KVLayers] | None = None

    def add(self, job: Relocation) -> None:
        """Queue a job for the next forward."""
        self._jobs.append(job)

    def run(self, pool: Any, rotation: Rotation) -> None:
        """Do all jobs on the current CUDA stream and forget them.

        pool: the HeadClassPool.
        rotation: how the model rotates keys.
        """
        jobs, self._jobs = self._jobs, []
        if jobs and self._layers is None:
            classes = pool.full_kv_pool, pool.swa_kv_pool
            self._layers = [KVLayers(buffers.k, buffers.v) for buffers in classes]
        for job in jobs:
            for move, layers in zip((job.global_rows, job.local_rows), self._layers or (), strict=True):
                for indices in (move.source, move.target, move.origin, move.position):
                    if indices.is_cuda:
                        # They were made on the scheduler's stream, which may reuse their memory once it is done with them;
                        # this tells the allocator that the forward's stream still reads them.
                        indices.record_stream(torch.cuda.current_stream())
                cos, sin = rotation.turn(move.origin, move.position)
                relocate(layers, move.source, move.target, cos, sin, rotation.is_neox)


def move_rows(
    slots: Tensor, targets: Tensor, origins: Tensor, positions: Tensor, local: Tensor, mapping: Tensor
) -> Relocation:
    """The job that moves n rows in the global class, and m of them in the local class, too.

    slots: int64 [n], global slots to read.
    targets: int64 [n], global slots to write.
    origins: int64 [n], positions at which the rows were computed.
    positions: int64 [n], positions that they have in the request.
    local: int64 [m], which of the rows local heads need: indices into the above.
    mapping: int64, local slot of each global slot.
    """
    chosen = slots[local]
    if mapping.device.type == "cpu":
        assert bool((mapping[chosen] > 0).all()), "a relocated row's local KV is not in the pool"
    return Relocation(
        ClassMove(slots, targets, origins, positions),
        ClassMove(mapping[chosen], mapping[targets[local]], origins[local], positions[local]),
    )
