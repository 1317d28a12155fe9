# SPDX-License-Identifier: Apache-2.0
"""The policy that repairs the rows which their context changes most."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

from redknot_sglang.plan.policies.base import Policy


@dataclass(frozen=True)
class Blend(Policy):
    """Repairs those rows of each segment that the text before the segment changes most: the share `share` of its rows.

    The idea is CacheBlend's (arXiv 2405.16444), which runs the whole prompt through the first layers and compares K and
    V with the cached ones. Here the change is estimated from the cache alone, by a *probe* of the first layer with
    global heads (`reuse/probe.py`). Each segment has its own share, so that text behind a segment cannot change what is
    chosen in it.
    """

    share: float

    kind = "blend"
    pattern = "blend:R"
    meaning = "of each segment the share R of the rows, 0 < R <= 1, that its context changes most"
    probes = True
    keeps_whole = True

    @classmethod
    def parse(cls, argument: str | None) -> Blend | None:
        """A decimal number above 0 and up to 1, without an exponent."""
        is_number = argument is not None and re.fullmatch(r"\d*\.?\d{1,9}", argument)
        share = float(argument) if is_number and argument is not None else 0.0
        return cls(share) if 0 < share <= 1 else None

    @property
    def name(self) -> str:
        """blend:R, with as few digits as R needs."""
        # No exponent, which `parse` does not read.
        return f"{self.kind}:{self.share:.9f}".rstrip("0").rstrip(".")

    def count(self, rows: int) -> int:
        """The share, rounded up."""
        return min(rows, ceil(self.share * rows))
