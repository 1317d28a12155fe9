# SPDX-License-Identifier: Apache-2.0
"""The result of one task of `redknot eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redknot_sglang.measure.statistics import quantile, wilson_interval

HEADER = ("task", "right", "exact match", "95 %", "TTFT median", "TTFT p99", "prompt", "cached", "errors")


@dataclass(frozen=True)
class TaskResult:
    """Figures of one task. A request that failed counts as a wrong answer, and its time does not count.

    task: its name.
    n: examples.
    correct: examples answered right.
    errors: requests that failed.
    first_error: the error of the first of them, or None.
    ttft: seconds to the first token of each complete answer.
    prompt_tokens: mean tokens of a prompt, or None if the server reported none.
    cached: share of the prompt tokens that came from the cache, 0 to 1, or None if the server reported none.
    wrong: seed, expected and given answer, and error of each example answered wrong.
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
        """The task's part of the JSON file."""
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
