# SPDX-License-Identifier: Apache-2.0
"""What a server with RedKnot computed for prompts, beside *dense* prefill: all rows, every head over the whole prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What was computed for one prompt. Computing its segments (documents) for the cache, each by itself, is not
    counted.

    rows: tokens of the prompt that the request itself computed.
    flops: floating-point operations of its prefill on one rank; None where the server does not count them.
    dense_flops: what prefill of the whole prompt takes without a cache and a head map; None as above.
    """

    rows: int
    flops: int | None = None
    dense_flops: int | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Cost:
        """The cost of an answer. report: its `meta_info.redknot`."""
        return cls(report["computed_rows"], report.get("flops"), report.get("dense_flops"))


def shares(lengths: Sequence[int], costs: Sequence[Cost | None]) -> dict[str, float | None] | None:
    """Which share of some prompts, taken together, was computed.

    lengths: tokens of each prompt as the client has it.
    costs: of each prompt, in the same order.
    Returns `rows`, the share of the prompts' tokens that were computed, and `flops`, operations over those of dense
    prefill, None where the server does not count them. None if the cost of a prompt is not known, or there is none.
    """
    known = [cost for cost in costs if cost is not None]
    if not known or len(known) < len(costs):
        return None
    flops = [cost.flops for cost in known if cost.flops is not None]
    dense = [cost.dense_flops for cost in known if cost.dense_flops is not None]
    counted = len(flops) == len(dense) == len(known)
    return {
        "rows": round(sum(cost.rows for cost in known) / sum(lengths), 6),
        "flops": round(sum(flops) / sum(dense), 6) if counted else None,
    }
