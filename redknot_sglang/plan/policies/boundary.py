# SPDX-License-Identifier: Apache-2.0
"""Policies that know their rows by position: the first rows of each segment, or none."""

from __future__ import annotations

from dataclasses import dataclass

from redknot_sglang.plan.policies.base import Policy
from redknot_sglang.plan.spans import Spans

_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class Nothing(Policy):
    """Nothing is repaired: segments are used as they are in isolation."""

    kind = pattern = name = "none"

    @classmethod
    def parse(cls, argument: str | None) -> Nothing | None:
        """It has no argument."""
        return cls() if argument is None else None

    def count(self, rows: int) -> int:
        """Always 0."""
        return 0


@dataclass(frozen=True)
class Boundary(Policy):
    """The first `rows` rows of each segment.

    It repairs what stands in those rows and nothing behind them (measured: eval/NOTES.md, "Segments").
    """

    rows: int

    kind = "boundary"
    pattern = "boundary:K"
    meaning = "the first K rows of each segment"

    @classmethod
    def parse(cls, argument: str | None) -> Boundary | None:
        """A whole number of rows, at least one."""
        rows = int(argument) if argument is not None and argument.isdecimal() else 0
        return cls(rows) if 0 < rows < _MOST_ROWS else None

    @property
    def name(self) -> str:
        """boundary:K."""
        return f"{self.kind}:{self.rows}"

    def count(self, rows: int) -> int:
        """K, or all rows of a shorter segment."""
        return min(rows, self.rows)

    def repaired(self, start: int, end: int) -> Spans:
        """The first K rows."""
        return [(start, start + self.count(end - start))]
