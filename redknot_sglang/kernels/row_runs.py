# SPDX-License-Identifier: Apache-2.0
"""Runs: rows of a buffer that lie one behind the other, and in which pieces they are copied as a whole. Plain arithmetic on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Part of a run: rows that one copy moves.

    first: row of the buffer where it begins.
    at: row of the staging buffer where it begins.
    count: rows.
    """

    first: int
    at: int
    count: int


@dataclass(frozen=True)
class Batch:
    """What fills a staging buffer once.

    begin, end: which of the rows these are, in the order of `RowRuns.order`.
    pieces: of these rows, one behind the other in the staging buffer.
    """

    begin: int
    end: int
    pieces: tuple[Piece, ...]


class RowRuns:
    """The runs of some rows, and the order of the rows that has the longest run first.

    That order serves rows of any size: where a copy has to have so many rows to be worth it, the runs that do are the first ones, and the
    other rows are all behind them.

    order: int64 [n], of each row in the new order its number in the old one.
    firsts: int64 [runs], the row where each run begins.
    counts: int64 [runs], rows of each, falling.
    """

    def __init__(self, rows: Tensor) -> None:
        """rows: int64 [n] on the CPU, not negative, in any order; a row that comes twice is in two runs."""
        numbers = rows.numpy()
        rising = np.argsort(numbers, kind="stable")
        ascending = numbers[rising]
        begins = np.flatnonzero(np.diff(ascending, prepend=-2) != 1)
        counts = np.diff(begins, append=len(numbers))
        longest = np.argsort(-counts, kind="stable")
        begins, self.counts = begins[longest], counts[longest]
        self.firsts = ascending[begins]
        ends = np.cumsum(self.counts)
        places = np.arange(len(numbers)) + np.repeat(begins - (ends - self.counts), self.counts)
        self.order = rising[places]
        self._batches: dict[tuple[int, int], tuple[Batch, ...]] = {}

    def batches(self, least: int, most: int) -> tuple[Batch, ...]:
        """How the long runs pass through a staging buffer; what is behind the last batch's end is in shorter ones.

        least: rows of the shortest run that is worth it; at least 1.
        most: rows of the staging buffer. A longer run is cut; with 0 nothing passes.
        All layers ask the same, so answers are kept.
        """
        found = self._batches.get((least, most))
        if found is None:
            found = self._batches[least, most] = tuple(self._cut(least, most)) if most else ()
        return found

    def _cut(self, least: int, most: int) -> list[Batch]:
        batches: list[Batch] = []
        pieces: list[Piece] = []
        begin = at = 0
        for first, count in zip(self.firsts.tolist(), self.counts.tolist(), strict=True):
            if count < least:
                break
            while count:
                part = min(count, most - at)
                pieces.append(Piece(first, at, part))
                first, count, at = first + part, count - part, at + part
                if at == most:
                    batches.append(Batch(begin, begin + at, tuple(pieces)))
                    begin, at, pieces = begin + at, 0, []
        if pieces:
            batches.append(Batch(begin, begin + at, tuple(pieces)))
        return batches
