# SPDX-License-Identifier: Apache-2.0
"""Copies between host memory and the device by its copy engines, where rows on the host lie one behind the other.

A copy engine moves contiguous pinned memory as fast as PCIe does, whatever the rows' size, and takes no multiprocessor from those that
decode; a kernel has each row under way by itself, and keeps PCIe busy with short rows only by many blocks, which slow those down
(`copy_rows.py`). Rows on the device lie anywhere. So a long run on the host passes through a staging buffer on the device, and one operation there, which takes a twentieth of
the time, moves its rows between that and their slots. Runs on the device are not looked for: its slots are known there only, and asking
would wait for it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .copy_rows import WORD, copy_rows
from .host_copy import pinned
from .row_runs import Batch, RowRuns


@dataclass(frozen=True)
class Sizes:
    """What is worth a copy by itself. Bytes.

    least: of a run in one buffer.
    staging: of the staging buffer of a direction.
    """

    least: int
    staging: int


# To start a copy takes the host some 8 us. With runs of 256 KiB the engine has 30 GB/s on an H200, where the kernel has 50; but a step of those
# that decode takes 11 % longer beside the one and 36 % beside the other, so a load costs them half as much (`eval/results/copy.json`). With
# shorter runs the host, which has a forward to launch, is busy for longer than either is worth. 16 MiB of staging are 32,768 rows of keys and
# of values of one head of 128 in 16 bits, and stay in the L2 cache. A CPU has no bus: the sizes are such that its tests go both ways.
SIZES = {"cuda": Sizes(least=256 << 10, staging=16 << 20), "cpu": Sizes(least=1 << 10, staging=64 << 10)}


@dataclass(frozen=True, eq=False)
class Buffers:
    """One or two buffers on the device whose rows have one shape and dtype, and their rows' places on the host.

    device: each [slots + 1, ...], contiguous.
    host: as many, [host slots, ...], contiguous; pinned if the others are on a GPU.
    """

    device: tuple[Tensor, ...]
    host: tuple[Tensor, ...]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row of one buffer."""
        row = self.device[0][0]
        return row.numel() * row.element_size()

    @cached_property
    def words(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same memory as [slots, words of a row]: operations by index take their time for each number, so there are to be few."""
        both = (*self.device, *self.host)
        fits = all(size % WORD == 0 for b in both for size in (self.row_bytes, b.storage_offset() * b.element_size()))
        dtype = torch.int64 if fits else torch.uint8
        device, host = ([b.flatten(1).view(torch.uint8).view(dtype) for b in side] for side in (self.device, self.host))
        return device, host


class Staging:
    """Memory on the device through which rows pass in one direction.

    All copies of a direction run on one stream, so what is written to it comes behind all that has read what was there before.

    device: where it is.
    sizes: by default those of its kind of device.
    """

    def __init__(self, device: torch.device, sizes: Sizes | None = None) -> None:
        self._sizes = sizes or SIZES[device.type]
        self._memory = torch.empty(self._sizes.staging, dtype=torch.uint8, device=device)
        self._parts: dict[tuple[int, int, torch.dtype], list[Tensor]] = {}

    def rows_at_least(self, buffers: Buffers) -> int:
        """Rows of the shortest run that is worth a copy by itself."""
        return max(1, -(-self._sizes.least // buffers.row_bytes))

    def parts(self, buffers: Buffers) -> list[Tensor]:
        """For each buffer a part with as many rows as all of them find room for, [rows, words of a row]; no row if it is too small."""
        (like, *_), _ = buffers.words
        key = len(buffers.device), buffers.row_bytes, like.dtype
        if key not in self._parts:
            count, size, dtype = key
            rows = len(self._memory) // (count * size)
            words = self._memory[: count * rows * size].view(dtype)
            self._parts[key] = list(words.view(count, rows, like.shape[1]).unbind())
        return self._parts[key]


class RunCopies:
    """The copies of one scheduler's host tier, in both directions. device: where its pools are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._to_device, self._to_host = Staging(device), Staging(device)
        # Of host rows that `moved` has returned, as long as somebody has them.
        self._runs: MutableMapping[Tensor, RowRuns] = WeakTensorKeyDictionary()

    def moved(self, host_rows: Tensor, device_rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same rows on the device, in the order in which they are copied best; nobody waits for that.

        host_rows: int64 [n], on the CPU.
        device_rows: int64 [n], on the device: row i of them goes with row i on the host.
        """
        runs, device = RowRuns(host_rows), device_rows.device
        order = torch.from_numpy(runs.order)
        both = pinned(torch.stack((host_rows[order], order)), device).to(device, non_blocking=True)
        host_rows, order = both.unbind()
        self._runs[host_rows] = runs
        if device_rows.is_cuda:
            # They may have been made on another stream, which may reuse their memory once they are dropped; what is returned is new.
            device_rows.record_stream(torch.cuda.current_stream())
        return host_rows, device_rows.index_select(0, order)

    def load(self, buffers: Buffers, host_rows: Tensor, device_rows: Tensor) -> None:
        """Copy rows to the device, on the current stream, always the same one.

        host_rows, device_rows: what `moved` has returned. Rows that did not come from there have no runs that we know, and go by the
            kernel.
        """
        load_rows(buffers, self._to_device, host_rows, device_rows, self._runs.get(host_rows))

    def save(self, buffers: Buffers, host_rows: Tensor, device_rows: Tensor) -> None:
        """Copy rows to the host, on the current stream, always the same one. Parameters as of `load`."""
        save_rows(buffers, self._to_host, host_rows, device_rows, self._runs.get(host_rows))


def load_rows(buffers: Buffers, staging: Staging, host_rows: Tensor, device_rows: Tensor, runs: RowRuns | None) -> None:
    """Copy rows of host memory to the device, on the current stream: long runs through `staging`, the others by the kernel.

    buffers: both ends.
    staging: that of this direction.
    host_rows: int64 [n], on the device, in the order of `runs`.
    device_rows: int64 [n], the same.
    runs: of the host's rows, or None if they are not known.
    """
    device, host = buffers.words
    parts = staging.parts(buffers)
    done = 0
    for batch in _batches(buffers, staging, parts, runs):
        for source, part in zip(host, parts, strict=True):
            for piece in batch.pieces:
                rows = source[piece.first : piece.first + piece.count]
                part[piece.at : piece.at + piece.count].copy_(rows, non_blocking=True)
        slots, count = device_rows[batch.begin : batch.end], batch.end - batch.begin
        for target, part in zip(device, parts, strict=True):
            target.index_copy_(0, slots, part[:count])
        done = batch.end
    if done < len(host_rows):
        copy_rows(buffers.host, buffers.device, host_rows[done:], device_rows[done:])


def save_rows(buffers: Buffers, staging: Staging, host_rows: Tensor, device_rows: Tensor, runs: RowRuns | None) -> None:
    """Copy rows of the device to host memory. Parameters as of `load_rows`; no host row comes twice."""
    device, host = buffers.words
    parts = staging.parts(buffers)
    done = 0
    for batch in _batches(buffers, staging, parts, runs):
        slots, count = device_rows[batch.begin : batch.end], batch.end - batch.begin
        for source, part in zip(device, parts, strict=True):
            torch.index_select(source, 0, slots, out=part[:count])
        for target, part in zip(host, parts, strict=True):
            for piece in batch.pieces:
                rows = part[piece.at : piece.at + piece.count]
                target[piece.first : piece.first + piece.count].copy_(rows, non_blocking=True)
        done = batch.end
    if done < len(host_rows):
        copy_rows(buffers.device, buffers.host, device_rows[done:], host_rows[done:])


def _batches(buffers: Buffers, staging: Staging, parts: list[Tensor], runs: RowRuns | None) -> tuple[Batch, ...]:
    if runs is None:
        return ()
    return runs.batches(staging.rows_at_least(buffers), len(parts[0]))
