# SPDX-License-Identifier: Apache-2.0
"""Copies of runs through a staging buffer: what arrives is what an operation by index would have brought, in both directions."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redknot_sglang.kernels import run_copies
from redknot_sglang.kernels.run_copies import Buffers, RunCopies, Sizes, Staging, load_rows
from redknot_sglang.kernels.stored import movable

CPU = torch.device("cpu")
SLOTS = 40
# Words of eight bytes, 8-bit floats, and rows that are no whole words.
ROWS = [(torch.float32, (2, 4)), (torch.bfloat16, (1, 8)), (torch.float8_e4m3fn, (1, 8)), (torch.bfloat16, (3, 1))]


def buffers(dtype: torch.dtype, shape: tuple[int, ...], count: int, seed: int = 0) -> Buffers:
    """`count` buffers at each end with random bits. The host's begin two bytes behind a word if a row is no whole word."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(shape, dtype=dtype).nbytes
    skip = 0 if size % 8 == 0 else 2

    def made(skip: int) -> Tensor:
        bits = torch.randint(0, 256, (skip + SLOTS * size,), generator=generator, dtype=torch.uint8)
        return bits[skip:].view(dtype).view(SLOTS, *shape)

    return Buffers(tuple(made(0) for _ in range(count)), tuple(made(skip) for _ in range(count)))


def bits(side: tuple[Tensor, ...]) -> list[Tensor]:
    return [buffer.contiguous().view(torch.uint8).clone() for buffer in side]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Rows of both ends, runs of the host's cut and shuffled."""
    host: list[int] = []
    for first, count in draw(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 15)), max_size=5)):
        host += [row for row in range(first, min(SLOTS, first + count)) if row not in host]
    if draw(st.booleans()):
        host = draw(st.permutations(host))
    device = draw(st.permutations(range(SLOTS)))
    return host, list(device[: len(host)])


@given(pairs(), st.sampled_from(ROWS), st.integers(1, 2), st.integers(1, 200), st.integers(0, 1200), st.booleans())
def test_any_rows_arrive_and_no_others_change(
    rows: tuple[list[int], list[int]],
    kind: tuple[torch.dtype, tuple[int, ...]],
    count: int,
    least: int,
    staging: int,
    to_device: bool,
) -> None:
    """Staging buffers from none over less than a row or a run to all that there is."""
    pair = buffers(*kind, count)
    host_rows, device_rows = (torch.tensor(side, dtype=torch.int64) for side in rows)
    source, target = (pair.host, pair.device) if to_device else (pair.device, pair.host)
    source_rows, target_rows = (host_rows, device_rows) if to_device else (device_rows, host_rows)
    kept, expected = bits(source), [movable(buffer).clone() for buffer in target]
    for buffer, other in zip(expected, source, strict=True):
        buffer.index_copy_(0, target_rows, movable(other).index_select(0, source_rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run_copies.SIZES, "cpu", Sizes(least, staging))
        copies = RunCopies(CPU)
    moved = copies.moved(host_rows, device_rows)
    (copies.load if to_device else copies.save)(pair, *moved)
    for buffer, want in zip(target, expected, strict=True):
        assert torch.equal(movable(buffer).view(torch.uint8), want.view(torch.uint8))
    for old, now in zip(kept, bits(source), strict=True):
        assert torch.equal(old, now)


def by_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that go by the kernel from now on."""
    said: list[int] = []
    real = run_copies.copy_rows

    def noted(sources: object, targets: object, rows: Tensor, others: Tensor) -> None:
        said.append(len(rows))
        real(sources, targets, rows, others)  # type: ignore[arg-type]

    monkeypatch.setattr(run_copies, "copy_rows", noted)
    return said


@pytest.mark.parametrize("direction", ["load", "save"])
def test_short_runs_and_rows_of_unknown_runs_go_by_the_kernel(monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    monkeypatch.setitem(run_copies.SIZES, "cpu", Sizes(least=5 * 32, staging=10_000))
    said, copies, pair = by_kernel(monkeypatch), RunCopies(CPU), buffers(*ROWS[0], 2)
    host = torch.tensor([30, 31, 32, 33, 1, 10, 11, 12, 13, 14])
    moved = copies.moved(host, torch.arange(10))
    getattr(copies, direction)(pair, *moved)
    assert said == [5]
    getattr(copies, direction)(pair, *copies.moved(torch.arange(10), torch.arange(10)))
    assert said == [5]
    getattr(copies, direction)(pair, torch.arange(10), torch.arange(10))
    assert said == [5, 10]


def test_runs_are_found_once_and_forgotten_with_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, pair = RunCopies(CPU), buffers(*ROWS[0], 2)
    moved = copies.moved(torch.arange(10), torch.arange(10))
    monkeypatch.setattr(run_copies, "RowRuns", None)
    for _ in range(3):
        copies.load(pair, *moved)
    assert len(copies._runs) == 1
    del moved
    gc.collect()
    assert len(copies._runs) == 0


def test_a_staging_buffer_is_shared_by_all_buffers_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes hold a row of 32 bytes of three buffers, or of two; and no row of four."""
    staging = Staging(CPU, Sizes(1, 100))
    for count, rows in ((1, 3), (2, 1), (4, 0)):
        parts = staging.parts(buffers(*ROWS[0], count))
        assert [tuple(part.shape) for part in parts] == [(rows, 4)] * count
    said = by_kernel(monkeypatch)
    wide = buffers(torch.float32, (30,), 1)
    load_rows(wide, staging, torch.arange(7), torch.arange(7), run_copies.RowRuns(torch.arange(7)))
    assert said == [7] and torch.equal(bits(wide.device)[0][:7], bits(wide.host)[0][:7])


def test_a_gpu_copies_by_its_engine_what_is_worth_starting_it() -> None:
    """One head of 128 in 16 bits: 1,024 rows and more, 32,768 rows of keys and of values at once."""
    row = torch.empty(1, 1, 128, dtype=torch.bfloat16)
    pair = Buffers((row, row), (row, row))
    staging = Staging(CPU, run_copies.SIZES["cuda"])
    assert staging.rows_at_least(pair) == 1024
    assert [len(part) for part in staging.parts(pair)] == [32768] * 2
