# SPDX-License-Identifier: Apache-2.0
"""Copies to host memory and back on a GPU: right whatever runs the rows lie in, beside work on another stream, and without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from redknot_sglang.kernels.run_copies import SIZES, Buffers, RunCopies

pytestmark = pytest.mark.gpu

SLOTS, LAYERS = 60_000, 3
# Runs on the host: longer than the staging buffer holds, longer than a copy has to be, and shorter.
RUNS = ((0, 40_000), (41_000, 2_000), (44_000, 1_025), (46_000, 700), (47_000, 1), (47_002, 30))


def layers(shape: tuple[int, ...], dtype: torch.dtype, count: int) -> list[Buffers]:
    """Buffers at both ends, random on the host and on the device."""

    def bits() -> Tensor:
        size = torch.empty(shape, dtype=dtype).nbytes
        return torch.randint(0, 256, (SLOTS * size,), dtype=torch.uint8)

    def made(of: Tensor) -> Tensor:
        return of.view(dtype).view(SLOTS, *shape)

    return [
        Buffers(
            tuple(made(bits().cuda()) for _ in range(count)), tuple(made(bits().pin_memory()) for _ in range(count))
        )
        for _ in range(LAYERS)
    ]


def raw(side: tuple[Tensor, ...]) -> list[Tensor]:
    """The bits of buffers, [slots, bytes], on the CPU and apart from them."""
    return [buffer.flatten(1).view(torch.uint8).cpu().clone() for buffer in side]


@contextmanager
def running_beside() -> Iterator[None]:
    """Products on a stream of their own, for longer than the copies take, whose result is checked."""
    stream, a = torch.cuda.Stream(), torch.randint(-2, 3, (4096, 4096), device="cuda").bfloat16()
    expected = a @ a
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        results = [a @ a for _ in range(100)]
    yield
    stream.synchronize()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize(
    ("shape", "dtype", "count"),
    [
        ((1, 128), torch.bfloat16, 2),
        ((7, 128), torch.bfloat16, 2),
        ((1, 128), torch.float8_e4m3fn, 2),
        ((2, 36), torch.float32, 1),
    ],
)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("to_device", [True, False])
def test_rows_arrive_beside_a_running_stream(
    shape: tuple[int, ...], dtype: torch.dtype, count: int, shuffled: bool, to_device: bool
) -> None:
    host_rows = torch.cat([torch.arange(first, first + rows) for first, rows in RUNS])
    if shuffled:
        host_rows = host_rows[torch.randperm(len(host_rows))]
    device_rows = torch.randperm(SLOTS)[: len(host_rows)]
    made = layers(shape, dtype, count)
    expected = []
    for pair in made:
        device, host = raw(pair.device), raw(pair.host)
        for on_device, on_host in zip(device, host, strict=True):
            if to_device:
                on_device[device_rows] = on_host[host_rows]
            else:
                on_host[host_rows] = on_device[device_rows]
        expected.append((device, host))
    copies = RunCopies(torch.device("cuda"))
    copy, stream = copies.load if to_device else copies.save, torch.cuda.Stream()
    with running_beside():
        on_gpu = device_rows.cuda()
        # The first round loads kernels; the second one, which copies the same rows again, may wait for nothing.
        for mode in ("default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                rows = copies.moved(host_rows, on_gpu)
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for pair in made:
                        copy(pair, *rows)
                    for numbers in rows:
                        numbers.record_stream(stream)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        stream.synchronize()
    for pair, (device, host) in zip(made, expected, strict=True):
        for side, want in ((pair.device, device), (pair.host, host)):
            for found, right in zip(raw(side), want, strict=True):
                assert torch.equal(found, right)


def test_all_of_one_run_goes_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel of SGLang's runs for it; what is too short for the engine does run one."""
    called: list[int] = []
    monkeypatch.setattr(
        "redknot_sglang.kernels.run_copies.copy_rows", lambda sources, targets, rows, others: called.append(len(rows))
    )
    copies, (pair, *_) = RunCopies(torch.device("cuda")), layers((1, 128), torch.bfloat16, 2)
    least = SIZES["cuda"].least // 256
    for rows in (least, least - 1):
        copies.load(pair, *copies.moved(torch.arange(rows), torch.arange(rows, device="cuda")))
    torch.cuda.synchronize()
    assert called == [least - 1]
