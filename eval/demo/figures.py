# SPDX-License-Identifier: Apache-2.0
"""The figures of one server and how they are written: table and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.demo.results import FrontendResult, TurnResult
from eval.demo.settings import REDKNOT, STOCK, Settings
from redknot_sglang.measure.client import cached_share
from redknot_sglang.measure.statistics import quantile, wilson_interval
from redknot_sglang.measure.table import format_table


@dataclass(frozen=True)
class Figures:
    """What the demo found for one server.

    server: its name.
    right: turns that were answered exactly, through both clients.
    asked: turns, through both clients.
    ttft: median seconds to the first token in the OpenAI client's turns.
    cached: share of these turns' prompt tokens that came from the cache, 0 to 1.
    kv_bytes: bytes of KV of a finished conversation, mean.
    fit: requests of `Settings.fill_length` tokens that were held at once.
    seconds: of the whole measurement.
    """

    server: str
    right: int
    asked: int
    ttft: float
    cached: float
    kv_bytes: float
    fit: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of the turns answered exactly."""
        return self.right / self.asked

    def as_json(self) -> dict[str, Any]:
        """All figures, with the interval of the accuracy."""
        return {
            **asdict(self),
            "accuracy": self.accuracy,
            "interval_95": wilson_interval(self.right, self.asked),
        }


def collect(
    server: str,
    settings: Settings,
    turns: Sequence[TurnResult],
    programs: Sequence[FrontendResult],
    fit: int,
    seconds: float,
) -> Figures:
    """Figures of one server. Raises RuntimeError if a turn failed or the server left out what is measured."""
    for turn in turns:
        if turn.answer.error is not None:
            raise RuntimeError(f"{server} failed to answer: {turn.answer.error}")
    answers = [turn.answer for turn in turns]
    return Figures(
        server=server,
        right=sum(turn.right for turn in turns) + sum(program.right for program in programs),
        asked=len(turns) + sum(program.turns for program in programs),
        ttft=quantile([answer.ttft for answer in answers], 0.5),
        # Both servers run with --enable-cache-report: no count at all means that nothing was cached.
        cached=cached_share(answers) or 0.0,
        kv_bytes=sum(_kv_bytes(server, settings, program.meta_info) for program in programs) / len(programs),
        fit=fit,
        seconds=seconds,
    )


def _kv_bytes(server: str, settings: Settings, meta_info: dict[str, Any]) -> int:
    if server == STOCK:
        return (meta_info["prompt_tokens"] + meta_info["completion_tokens"]) * settings.bytes_per_token
    if "redknot" not in meta_info:
        raise RuntimeError(f"{server} answered without meta_info.redknot; see its log")
    return int(meta_info["redknot"]["kv_bytes"])


def rows(figures: dict[str, Figures], settings: Settings) -> list[list[str]]:
    """Rows of the table: what, one cell per server, RedKnot against stock."""
    both = figures[STOCK], figures[REDKNOT]
    stock, redknot = both

    def times(value: float, base: float) -> str:
        return f"{value / base:.2f}x" if base else "-"

    def fit(value: int) -> str:
        return f">= {value}" if value >= settings.fill_requests else str(value)

    return [
        [
            "exact match of all turns",
            *(f"{f.right}/{f.asked} = {100 * f.accuracy:.1f} %" for f in both),
            f"{100 * (redknot.accuracy - stock.accuracy):+.1f} points",
        ],
        [
            "time to first token, median",
            *(f"{1000 * f.ttft:.0f} ms" for f in both),
            times(redknot.ttft, stock.ttft),
        ],
        [
            "prompt tokens from the cache",
            *(f"{100 * f.cached:.1f} %" for f in both),
            times(redknot.cached, stock.cached),
        ],
        [
            "KV of a finished conversation",
            *(f"{f.kv_bytes / 2**20:.1f} MiB" for f in both),
            times(redknot.kv_bytes, stock.kv_bytes),
        ],
        [
            f"{settings.fill_length}-token requests that fit",
            *(fit(f.fit) for f in both),
            (">= " if redknot.fit >= settings.fill_requests else "") + times(redknot.fit, stock.fit),
        ],
    ]


def table(figures: dict[str, Figures], settings: Settings) -> str:
    """The demo's one table."""
    return format_table(["", STOCK, REDKNOT, "ratio"], rows(figures, settings))
