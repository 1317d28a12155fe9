# SPDX-License-Identifier: Apache-2.0
"""The table of the four servers, and whether the tier changed an answer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from eval.rag.report import Phase
from eval.servers import REDKNOT
from eval.tier_rag.sides import REDKNOT_TIER
from redknot_sglang.measure.table import format_table

HEADER = (
    "side",
    "corpus on device",
    "on host",
    "n",
    "errors",
    "TTFT p50 ms",
    "p99 ms",
    "computed anew",
    "found on host",
    "loaded MB",
)


def table(result: Mapping[str, Any], args: argparse.Namespace) -> str:
    """What was asked, and a line for each side that was measured."""
    lines = []
    for side, found in result["sides"].items():
        if not found.get("n"):
            lines.append([side, *["-"] * (len(HEADER) - 1)])
            continue
        holds, tiers = found["holds"], found.get("tiers")
        loaded = sum(tiers["copied_bytes"]["loaded_back"].values()) if tiers else None
        tokens = sum(record["prompt_tokens"] for record in found["requests"] if record["error"] is None)
        on_host = sum(record["from_host"] for record in found["requests"] if record["error"] is None)
        lines.append([
            side,
            f"{100 * holds['device_share']:.0f} %",
            f"{100 * holds['host_share']:.0f} %",
            str(found["n"]),
            str(found["errors"]),
            f"{1000 * found['ttft_s']['p50']:.0f}",
            f"{1000 * found['ttft_s']['p99']:.0f}",
            f"{100 * found['shares']['computed']:.1f} %",
            f"{100 * on_host / tokens:.1f} %" if tiers is None else "",
            "" if loaded is None else f"{loaded / 1e6:.0f}",
        ])  # fmt: skip
    said = [format_table(HEADER, lines)]
    if "corpus" in result:
        documents, each = result["corpus"]["documents"], args.document_tokens
        said.insert(
            0, f"{documents} documents of {each} tokens, {args.per_request} a request, {args.rate:g} requests/s"
        )
    if "same_answers" in result:
        same = result["same_answers"]
        said.append(f"{same['same']} of {same['of']} answers of {REDKNOT_TIER} are those of {REDKNOT}")
    return "\n".join(said)


def same_answers(one: Phase, other: Phase) -> dict[str, int]:
    """Of requests that both sides answered, how many got the same token; rounding can change one that is nearly a tie."""
    both = [(one.answers[place], other.answers[place]) for place in one.answers if place in other.answers]
    return {"same": sum(a == b for a, b in both), "of": len(both)}
