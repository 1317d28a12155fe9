# SPDX-License-Identifier: Apache-2.0
"""From answers to a verdict: how much a policy loses against dense attention on the same prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redknot_sglang.certify.questions import DATA, Question
from redknot_sglang.certify.servers import Reply
from redknot_sglang.measure.statistics import paired_difference_interval, wilson_interval

PASS, FAIL = "pass", "fail"
BY = ("estimate", "upper")


@dataclass(frozen=True)
class Thresholds:
    """What a policy may lose, in points (percent of the prompts).

    max_loss: on average over the tasks, at any length. max_task_loss: on any task at any length, and on data with answers.
    min_agreement: percent of the dense answer's tokens that must come, up to the first difference, on data without answers.
    min_dense: percent that dense attention must get right, or a loss says nothing. by: whether the estimate of a loss is
    compared, or the upper end of its 95 % interval.
    """

    max_loss: float
    max_task_loss: float
    min_agreement: float
    min_dense: float
    by: str = BY[0]


@dataclass(frozen=True)
class Pairs:
    """The same prompts under dense attention and under a policy: right or not, in one order."""

    dense: Sequence[bool]
    policy: Sequence[bool]

    @property
    def loss(self) -> float:
        """Points by which the policy is worse."""
        return 100 * (sum(self.dense) - sum(self.policy)) / len(self.dense)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the loss, in points."""
        both = sum(d and p for d, p in self._rows())
        lost = sum(d and not p for d, p in self._rows())
        won = sum(p and not d for d, p in self._rows())
        low, high = paired_difference_interval(both, lost, won, len(self.dense) - both - lost - won)
        return 100 * low, 100 * high

    def judged(self, by: str) -> float:
        """The figure that thresholds are for."""
        return self.interval[1] if by == BY[1] else self.loss

    def _rows(self) -> Iterator[tuple[bool, bool]]:
        return zip(self.dense, self.policy, strict=True)

    def as_json(self) -> dict[str, Any]:
        """Counts, exact match and loss with their 95 % intervals; shares are 0 to 1, losses points."""
        n = len(self.dense)
        sides = {
            name: {
                "right": sum(right),
                "accuracy": round(sum(right) / n, 6),
                "interval_95": [round(end, 6) for end in wilson_interval(sum(right), n)],
            }
            for name, right in (("dense", self.dense), ("policy", self.policy))
        }
        interval = [round(end, 4) for end in self.interval]
        return {"n": n, **sides, "loss_points": round(self.loss, 4), "loss_interval_95": interval}


def judge(
    questions: Sequence[Question], dense: Sequence[Reply], policy: Sequence[Reply], limits: Thresholds
) -> dict[str, Any]:
    """A policy's part of a certificate: verdict, reasons, cells of (task, length), means by length, agreement."""
    cells: dict[tuple[str, int | None], list[tuple[bool, bool]]] = {}
    open_ended: list[tuple[Reply, Reply]] = []
    for question, expected, got in zip(questions, dense, policy, strict=True):
        if question.score is None:
            open_ended.append((expected, got))
        else:
            rows = cells.setdefault((question.task, question.length), [])
            rows.append((question.score(expected.text), question.score(got.text)))
    pairs = {key: Pairs(*(tuple(side) for side in zip(*rows, strict=True))) for key, rows in cells.items()}
    means = {
        length: _pooled([found for (task, at), found in pairs.items() if at == length and task != DATA])
        for length in sorted({at for _, at in pairs if at is not None})
    }
    agreement = agree(open_ended) if open_ended else None
    reasons = [*_reasons(pairs, means, limits)]
    if agreement is not None and agreement["agreed_tokens"] * 100 < limits.min_agreement:
        reasons.append(
            f"{DATA}: {100 * agreement['agreed_tokens']:.1f} % of the dense answers' tokens come, "
            f"{limits.min_agreement:g} % must"
        )
    return {
        "verdict": FAIL if reasons else PASS,
        "reasons": reasons,
        "means": [{"length": length, **found.as_json()} for length, found in means.items()],
        "cells": [{"task": task, "length": length, **found.as_json()} for (task, length), found in pairs.items()],
        "agreement": agreement,
    }


def agree(replies: Sequence[tuple[Reply, Reply]]) -> dict[str, Any]:
    """How far a policy's answers follow the dense ones, as shares of 0 to 1.

    same: equal answers. agreed_tokens: tokens before the first difference over tokens of the dense answer, mean of the
    prompts. logprob_gap: mean absolute difference of log-probabilities (nats) of these tokens, None if there are none.
    """
    shares, gaps, same = [], list[float](), 0
    for dense, policy in replies:
        agreed = 0
        while agreed < min(len(dense.tokens), len(policy.tokens)) and dense.tokens[agreed] == policy.tokens[agreed]:
            agreed += 1
        same += dense.tokens == policy.tokens
        shares.append(agreed / max(1, len(dense.tokens)) if dense.tokens else float(not policy.tokens))
        gaps += [abs(a - b) for a, b in zip(dense.logprobs[:agreed], policy.logprobs[:agreed], strict=True)]
    low, high = wilson_interval(same, len(replies))
    return {
        "n": len(replies),
        "same": same,
        "same_interval_95": [round(low, 6), round(high, 6)],
        "agreed_tokens": round(statistics.fmean(shares), 6),
        "logprob_gap": round(statistics.fmean(gaps), 6) if gaps else None,
    }


def _pooled(cells: Sequence[Pairs]) -> Pairs:
    """All prompts of cells of one size together, whose loss is the mean of the cells' losses."""
    return Pairs([d for cell in cells for d in cell.dense], [p for cell in cells for p in cell.policy])


def _reasons(pairs: dict[tuple[str, int | None], Pairs], means: dict[int, Pairs], limits: Thresholds) -> Iterator[str]:
    what = "loses" if limits.by == BY[0] else "may lose (upper end of the 95 % interval)"
    for (task, length), found in pairs.items():
        where = task if length is None else f"{task} at {length} tokens"
        right = 100 * sum(found.dense) / len(found.dense)
        if right < limits.min_dense:
            yield f"{where}: dense attention gets {right:.1f} % right, under {limits.min_dense:g} %, so a loss says nothing"
        if found.judged(limits.by) > limits.max_task_loss:
            yield f"{where}: {what} {found.judged(limits.by):.2f} points, allowed are {limits.max_task_loss:g}"
    for length, found in means.items():
        if found.judged(limits.by) > limits.max_loss:
            yield (
                f"mean of the tasks at {length} tokens: {what} {found.judged(limits.by):.2f} points, "
                f"allowed are {limits.max_loss:g}"
            )
