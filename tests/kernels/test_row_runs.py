# SPDX-License-Identifier: Apache-2.0
"""Runs of rows: all rows are in one, each in one only, and long ones are cut as the staging buffer asks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.kernels.row_runs import Batch, Piece, RowRuns


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 9), st.integers(0, 12))
def test_any_rows_are_in_runs_and_long_ones_in_batches(numbers: list[int], least: int, most: int) -> None:
    runs = RowRuns(torch.tensor(numbers, dtype=torch.int64))
    order = runs.order.tolist()
    assert sorted(order) == list(range(len(numbers)))
    ordered = [numbers[number] for number in order]
    spelled = [
        row
        for first, count in zip(runs.firsts.tolist(), runs.counts.tolist(), strict=True)
        for row in range(first, first + count)
    ]
    assert spelled == ordered
    assert runs.counts.tolist() == sorted(runs.counts.tolist(), reverse=True)
    # Where no row comes twice, no two runs could be one.
    if len(set(numbers)) == len(numbers):
        ends = set((runs.firsts + runs.counts).tolist())
        assert not ends & set(runs.firsts.tolist())

    batches = runs.batches(least, most)
    done, long = 0, sum(count for count in runs.counts.tolist() if count >= least)
    for batch in batches:
        assert batch.begin == done < batch.end <= done + most
        at = 0
        for piece in batch.pieces:
            assert piece.at == at and piece.count > 0
            assert ordered[done + at : done + at + piece.count] == list(range(piece.first, piece.first + piece.count))
            at += piece.count
        assert done + at == batch.end
        done = batch.end
    assert done == (long if most else 0)
    # No batch more than it takes.
    assert len(batches) == (-(-long // most) if most else 0)


def test_a_run_that_the_staging_buffer_does_not_hold_is_cut() -> None:
    runs = RowRuns(torch.tensor([20, 21, 22, 23, 24, 7, 8, 9, 40]))
    assert runs.batches(3, 4) == (
        Batch(0, 4, (Piece(20, 0, 4),)),
        Batch(4, 8, (Piece(24, 0, 1), Piece(7, 1, 3))),
    )
    assert runs.batches(3, 4) is runs.batches(3, 4)
    assert runs.batches(4, 100) == (Batch(0, 5, (Piece(20, 0, 5),)),)
    assert runs.batches(6, 100) == ()


def test_rows_out_of_order_are_one_run() -> None:
    runs = RowRuns(torch.tensor([5, 3, 4, 2]))
    assert (runs.firsts.tolist(), runs.counts.tolist(), runs.order.tolist()) == ([2], [4], [3, 1, 2, 0])
