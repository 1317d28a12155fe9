# SPDX-License-Identifier: Apache-2.0
"""Repair policies: which rows of a reused segment are computed again in their true context."""

from __future__ import annotations

from dataclasses import dataclass

from redknot_sglang.config import RedKnotError

_KNOWN = "none, boundary:K (the first K rows of each segment)"


@dataclass(frozen=True)
class Boundary:
    """The first `rows` rows of each segment (0: none).

    It repairs what stands in those rows and nothing behind them (measured: eval/NOTES.md, "Segments").
    """

    rows: int

    @property
    def name(self) -> str:
        """As users write it."""
        return f"boundary:{self.rows}" if self.rows else "none"

    def repaired(self, start: int, end: int) -> tuple[int, int]:
        """Span of the repaired rows of the segment [start, end)."""
        return start, min(end, start + self.rows)


def parse_repair(text: str) -> Boundary:
    """The policy that `text` names. Raises RedKnotError."""
    kind, colon, argument = text.partition(":")
    if kind == "none" and not colon:
        return Boundary(0)
    if kind == "boundary" and argument.isdecimal() and 0 < int(argument) < 1 << 20:
        return Boundary(int(argument))
    raise RedKnotError(f"repair policy {text!r} is not known; use one of {_KNOWN}")
