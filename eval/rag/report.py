# SPDX-License-Identifier: Apache-2.0
"""The figures of one side under one kind of traffic, and the tables that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.rag.load import Place, Record
from redknot_sglang.measure.statistics import quantile, wilson_interval
from redknot_sglang.measure.table import format_table

Summaries = dict[str, dict[str, dict[str, Any]]]
"""Figures of `summarize`, by kind of traffic and side."""

CLASSES = ("reused", "relocated", "repaired", "computed")


@dataclass(frozen=True)
class Phase:
    """What one side (stock, or a repair policy) gave under one kind of traffic."""

    traffic: str
    side: str
    records: list[Record]

    @property
    def complete(self) -> list[Record]:
        """Requests that were answered."""
        return [record for record in self.records if record.error is None]

    @property
    def answers(self) -> dict[Place, list[int]]:
        """Token ids of the answers."""
        return {(record.dialogue, record.turn): record.output for record in self.complete}


def summarize(phase: Phase, stock: Phase) -> dict[str, Any]:
    """Figures of a phase; seconds, and shares of the prompt tokens. `stock`: the same traffic on stock SGLang.

    Rates are over the time from the first request sent to the last answer. same_prompts: the share of requests whose
    prompt was the same as on stock to the last token; in dialogues different answers make different prompts. ratio:
    stock's median time to first token over this side's. Figures that no request gave are None.
    """
    done = phase.complete
    failed = [record.error for record in phase.records if record.error is not None]
    figures: dict[str, Any] = {"n": len(done), "errors": len(failed), "first_error": failed[0] if failed else None}
    if not done:
        return figures
    tokens = sum(record.prompt_tokens for record in done)
    seconds = max(r.start_s + r.total_s for r in done) - min(r.start_s for r in done)
    asked = [record.right for record in done if record.right is not None]
    on_stock = {(record.dialogue, record.turn): record.prompt for record in stock.complete}
    same = [on_stock.get((record.dialogue, record.turn)) == record.prompt for record in done]
    ttft = _quantiles([record.ttft_s for record in done])
    stock_ttft = _quantiles([record.ttft_s for record in stock.complete])
    return {
        **figures,
        "seconds": seconds,
        "prompt_tokens_mean": tokens / len(done),
        "prompt_tokens_max": max(record.prompt_tokens for record in done),
        "ttft_s": ttft,
        "total_s": _quantiles([record.total_s for record in done]),
        "ratio": stock_ttft["p50"] / ttft["p50"] if stock_ttft else None,
        "requests_per_s": len(done) / seconds,
        "output_tokens_per_s": sum(record.output_tokens for record in done) / seconds,
        "shares": {name: sum(getattr(record, name) for record in done) / tokens for name in CLASSES},
        "right": sum(asked) if asked else None,
        "asked": len(asked),
        "interval_95": wilson_interval(sum(asked), len(asked)) if asked else None,
        "same_prompts": sum(same) / len(same),
        "late_s_max": max(record.late_s for record in done),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99)} if values else {}


HEADER = (
    "side",
    "n",
    "TTFT p50 ms",
    "p99",
    "stock/side",
    "total p50 ms",
    "p99",
    "out tok/s",
    "req/s",
    *CLASSES,
    "exact match (95 %)",
)


def traffic_table(summaries: Mapping[str, dict[str, Any]]) -> str:
    """One line for each side under one kind of traffic; shares are of the prompt tokens."""
    return format_table(HEADER, [_line(side, figures) for side, figures in summaries.items()])


def _line(side: str, figures: dict[str, Any]) -> list[str]:
    if not figures["n"]:
        return [side, "0", *["-"] * (len(HEADER) - 2)]
    ttft, total, ratio = figures["ttft_s"], figures["total_s"], figures["ratio"]
    return [
        side,
        str(figures["n"]),
        f"{1000 * ttft['p50']:.0f}",
        f"{1000 * ttft['p99']:.0f}",
        "-" if ratio is None else f"{ratio:.2f}x",
        f"{1000 * total['p50']:.0f}",
        f"{1000 * total['p99']:.0f}",
        f"{figures['output_tokens_per_s']:.1f}",
        f"{figures['requests_per_s']:.2f}",
        *(f"{figures['shares'][name]:.3f}" for name in CLASSES),
        _accuracy(figures),
    ]


def _accuracy(figures: dict[str, Any]) -> str:
    if not figures["asked"]:
        return "-"
    low, high = figures["interval_95"]
    return f"{figures['right']}/{figures['asked']} ({low:.2f}-{high:.2f})"
