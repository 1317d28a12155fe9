# SPDX-License-Identifier: Apache-2.0
"""Repair policies: which rows of a reused segment are computed again in their true context."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from redknot_sglang.errors import RedKnotError
from redknot_sglang.radix.spans import Spans

_KNOWN = (
    "none, boundary:K (the first K rows of each segment), "
    "blend:R (of each segment the share R of the rows, 0 < R <= 1, that its context changes most)"
)


@dataclass(frozen=True)
class Boundary:
    """The first `rows` rows of each segment (0: none).

    It repairs what stands in those rows and nothing behind them (measured: eval/NOTES.md, "Segments").
    """

    rows: int
    probes: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As users write it."""
        return f"boundary:{self.rows}" if self.rows else "none"

    def repaired(self, start: int, end: int) -> Spans:
        """The repaired rows of the segment [start, end)."""
        stop = min(end, start + self.rows)
        return [(start, stop)] if start < stop else []


@dataclass(frozen=True)
class Blend:
    """Of each segment the share `share` of its rows that its context changes most.

    After CacheBlend (arXiv 2405.16444), which runs the whole prompt through the first layers and compares K and V with the
    cached ones. Here the change is foretold from the cache alone, by a *probe* of the first global heads
    (`reuse/probe.py`). And each segment has its own share, so that nothing that follows changes a choice.
    """

    share: float
    probes: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """As users write it."""
        # No exponent, which `parse_repair` does not read.
        return f"blend:{self.share:.9f}".rstrip("0").rstrip(".")

    def count(self, rows: int) -> int:
        """Most rows that are repaired of a segment of `rows` rows."""
        return min(rows, ceil(self.share * rows))


Repair = Boundary | Blend


def parse_repair(text: str) -> Repair:
    """The policy that `text` names. Raises RedKnotError."""
    kind, colon, argument = text.partition(":")
    if kind == "none" and not colon:
        return Boundary(0)
    if kind == "boundary" and argument.isdecimal() and 0 < int(argument) < 1 << 20:
        return Boundary(int(argument))
    if kind == "blend" and re.fullmatch(r"\d*\.?\d{1,9}", argument) and 0 < float(argument) <= 1:
        return Blend(float(argument))
    raise RedKnotError(f"repair policy {text!r} is not known; use one of {_KNOWN}")
