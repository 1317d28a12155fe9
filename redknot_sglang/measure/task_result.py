# SPDX-License-Identifier: Apache-2.0
"""What `redknot eval` found out about one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redknot_sglang.measure.statistics import quantile, wilson_interval

HEADER = ("task", "right", "exact match", "95 %", "TTFT median", "TTFT p99", "prompt", "cached", "errors")


@dataclass(frozen=True)
class TaskResult:
    """Figures of one task. Times are seconds; `cached` is a share of the prompt tokens, None if not reported.

    A request that failed counts as a wrong answer, and its time does not count.
    """

    task: str
    n: int
    correct: int
    errors: int
    first_error: str | None
    ttft: list[float]
    prompt_tokens: float | None
    cached: float | None
    wrong: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """What the JSON file holds for the task."""
        return {
            "n": self.n,
            "correct": self.correct,
            "accuracy": self.correct / self.n,
            "interval_95": wilson_interval(self.correct, self.n),
            "errors": self.errors,
            "first_error": self.first_error,
            "ttft_median_s": quantile(self.ttft, 0.5) if self.ttft else None,
            "ttft_p99_s": quantile(self.ttft, 0.99) if self.ttft else None,
            "prompt_tokens_mean": self.prompt_tokens,
            "cached_token_share": self.cached,
            "wrong": self.wrong,
        }

    def as_row(self) -> list[str]:
        """Cells of the printed table."""
        low, high = wilson_interval(self.correct, self.n)
        return [
            self.task,
            f"{self.correct}/{self.n}",
            f"{100 * self.correct / self.n:.1f} %",
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{1000 * quantile(self.ttft, 0.5):.0f} ms" if self.ttft else "-",
            f"{1000 * quantile(self.ttft, 0.99):.0f} ms" if self.ttft else "-",
            "-" if self.prompt_tokens is None else f"{self.prompt_tokens:.0f}",
            "not reported" if self.cached is None else f"{100 * self.cached:.1f} %",
            str(self.errors),
        ]
