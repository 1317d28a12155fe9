# SPDX-License-Identifier: Apache-2.0
"""Relocation: KV of cached documents is copied to the slots of a request, its keys turned to their new positions.

Jobs are made while the scheduler admits a request, and run at the start of that request's forward. All that writes KV
runs on the forward's CUDA stream, or begins behind it, so a source slot that the scheduler gives away in between is
still intact by then. Jobs run in the order in which they were made, since a later job may write where an earlier one
reads. Loads from the host tier (`pool/host_copies.py`) are jobs, too: a relocation waits for all loads before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

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


@dataclass(frozen=True)
class Follower:
    """KV of a draft model, of which a row goes with each global slot.

    pool: SGLang's pool of it, with `k_buffer` and `v_buffer`, of each layer [slots + 1, heads, D], 8-bit floats as bytes; and `dtype`,
        that of K and V.
    rotation: how the draft model rotates keys.
    """

    pool: Any
    rotation: Rotation

    @cached_property
    def layers(self) -> KVLayers:
        """The pool's buffers."""
        k, v = ([buffer.view(self.pool.dtype) for buffer in kept] for kept in (self.pool.k_buffer, self.pool.v_buffer))
        return KVLayers(k, v)


class Loads(Protocol):
    """The interface of what copies from the host tier to the device (`pool/host_copies.py`)."""

    def begin(self, operations: Sequence[Any]) -> None:
        """Start loads, behind all that the current stream has to do."""

    def wait_for_layer(self, layer: int) -> None:
        """Have the current stream wait for a layer of the loads that were begun last."""

    def wait(self) -> None:
        """Have the current stream wait for all layers of them."""


class RelocationQueue:
    """Relocations and loads that wait for the next forward.

    loads: what copies from the host tier, set where there is one.
    follower: the draft model's KV, set where there is one.
    """

    def __init__(self) -> None:
        self._jobs: list[Any] = []
        self._layers: list[KVLayers] | None = None
        self.loads: Loads | None = None
        self.follower: Follower | None = None

    @property
    def has_loads(self) -> bool:
        """Whether a load waits here."""
        return any(not isinstance(job, Relocation) for job in self._jobs)

    def add(self, job: Relocation) -> None:
        """Queue a job for the next forward."""
        self._jobs.append(job)

    def add_load(self, operation: Any) -> None:
        """Queue a load for the next forward. operation: what `Loads.begin` takes."""
        self._jobs.append(operation)

    def forget_loads(self) -> None:
        """Drop the loads that wait: what they were for is gone."""
        self._jobs = [job for job in self._jobs if isinstance(job, Relocation)]

    def run(self, pool: Any, rotation: Rotation | None) -> None:
        """Do all jobs on the current CUDA stream and forget them.

        Loads behind which no relocation waits may go on beside what the stream does next: it must call `wait_for_layer`
        before it reads a layer, or `wait`.

        pool: the HeadClassPool.
        rotation: how the model rotates keys; None if it relocates nothing.
        """
        self.wait()
        jobs, self._jobs = self._jobs, []
        loads: list[Any] = []
        for job in jobs:
            if not isinstance(job, Relocation):
                loads.append(job)
                continue
            if loads:
                self._begin(loads)
                self.wait()
                loads = []
            assert rotation is not None, "relocation without a rotation"
            self._relocate(job, pool, rotation)
        if loads:
            self._begin(loads)

    def wait_for_layer(self, layer: int) -> None:
        """Have the current stream wait until one layer of what is being loaded is there."""
        if self.loads is not None:
            self.loads.wait_for_layer(layer)

    def wait(self) -> None:
        """Have the current stream wait until all that is being loaded is there."""
        if self.loads is not None:
            self.loads.wait()

    def _begin(self, operations: Sequence[Any]) -> None:
        assert self.loads is not None, "a load without a host tier"
        self.loads.begin(operations)

    def _relocate(self, job: Relocation, pool: Any, rotation: Rotation) -> None:
        if self._layers is None:
            classes = pool.full_kv_pool, pool.swa_kv_pool
            self._layers = [KVLayers(buffers.k, buffers.v) for buffers in classes]
        for move, layers in zip((job.global_rows, job.local_rows), self._layers, strict=True):
            for indices in (move.source, move.target, move.origin, move.position):
                if indices.is_cuda:
                    # They were made on the scheduler's stream, which may reuse their memory once it is done with them;
                    # this tells the allocator that the forward's stream still reads them.
                    indices.record_stream(torch.cuda.current_stream())
            cos, sin = rotation.turn(move.origin, move.position)
            relocate(layers, move.source, move.target, cos, sin, rotation.is_neox)
        if self.follower is not None:
            self._follow(job.global_rows, self.follower)

    def _follow(self, move: ClassMove, follower: Follower) -> None:
        cos, sin = follower.rotation.turn(move.origin, move.position)
        relocate(follower.layers, move.source, move.target, cos, sin, follower.rotation.is_neox)


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
