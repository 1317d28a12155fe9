# SPDX-License-Identifier: Apache-2.0
"""What prompts cost a server with RedKnot, beside what dense prefill would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What was computed for one prompt. What cached segments took when they were computed, each by itself, does not count.

    rows: tokens of the prompt that the request itself computed.
    flops: floating-point operations of its prefill on one rank; None where the server does not count them.
    dense_flops: what prefill of the whole prompt takes without a cache and a head map; None as above.
    """

    rows: int
    flops: int | None = None
    dense_flops: int | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Cost:
        """From `meta_info.redknot` of an answer."""
        return cls(report["computed_rows"], report.get("flops"), report.get("dense_flops"))


def shares(lengths: Sequence[int], costs: Sequence[Cost | None]) -> dict[str, float | None] | None:
    """What was computed of some prompts together.

    lengths: tokens of each prompt as the client has it.
    costs: of each prompt, in the same order.
    Returns `rows`, the share of the prompts' tokens that were computed, and `flops`, operations over those of dense prefill, None
    where the server does not count them. None if the cost of a prompt is not known, or there is none.
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
