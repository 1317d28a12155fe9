# SPDX-License-Identifier: Apache-2.0
"""Judges a policy: how much it loses against dense attention on the same prompts, and whether that is too much."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redknot_sglang.certify.cost import Cost, shares
from redknot_sglang.certify.questions import DATA, Question
from redknot_sglang.certify.servers import Reply
from redknot_sglang.measure.statistics import paired_difference_interval, wilson_interval

PASS, FAIL = "pass", "fail"
BY = ("estimate", "upper")


@dataclass(frozen=True)
class Thresholds:
    """What a policy may lose. A point is one percent of the prompts.

    max_loss: points that it may lose at any length, on average over the tasks.
    max_task_loss: points that it may lose on any task and length, and on the user's data with answers.
    min_agreement: on data without answers, percent of the dense answer's tokens that must come before the first token
        in which the policy's answer differs.
    min_dense: percent that dense attention must get right on every task; below it a loss says nothing, and the policy
        fails.
    by: one of BY: compare the estimate of a loss, or the upper end of its 95 % interval.
    """

    max_loss: float
    max_task_loss: float
    min_agreement: float
    min_dense: float
    by: str = BY[0]


@dataclass(frozen=True)
class Pairs:
    """Whether the same prompts were answered right under dense attention and under a policy.

    dense: for each prompt.
    policy: for each prompt, in the same order.
    lengths: tokens of each prompt.
    costs: what the policy took for each, None where that is not known.
    """

    dense: Sequence[bool]
    policy: Sequence[bool]
    lengths: Sequence[int] = ()
    costs: Sequence[Cost | None] = ()

    @property
    def loss(self) -> float:
        """Points that the policy loses against dense attention; negative if it is better."""
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
        """The loss that is compared with a threshold, in points. by: one of BY."""
        return self.interval[1] if by == BY[1] else self.loss

    def _rows(self) -> Iterator[tuple[bool, bool]]:
        return zip(self.dense, self.policy, strict=True)

    def as_json(self) -> dict[str, Any]:
        """Counts, exact match and loss with their 95 % intervals, and what was computed; shares are 0 to 1, losses
        points.
        """
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
        return {
            "n": n,
            **sides,
            "loss_points": round(self.loss, 4),
            "loss_interval_95": interval,
            "computed": shares(self.lengths, self.costs),
        }


@dataclass(frozen=True)
class Comparison:
    """A policy beside dense attention on the same prompts.

    cells: for each task and length, those with known answers.
    means: for each length, those of all tasks together.
    agreement: on prompts without known answers, as JSON types; None if there are none.
    """

    cells: dict[tuple[str, int | None], Pairs]
    means: dict[int, Pairs]
    agreement: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {
            "means": [{"length": length, **found.as_json()} for length, found in self.means.items()],
            "cells": [
                {"task": task, "length": length, **found.as_json()} for (task, length), found in self.cells.items()
            ],
            "agreement": self.agreement,
        }


def compare(questions: Sequence[Question], dense: Sequence[Reply], policy: Sequence[Reply]) -> Comparison:
    """Compare replies.

    questions: what was asked.
    dense: replies of stock SGLang, in the order of the questions.
    policy: replies under the policy, in the same order.
    """
    rows: dict[tuple[str, int | None], list[tuple[bool, bool, int, Cost | None]]] = {}
    open_ended: list[tuple[Reply, Reply]] = []
    open_lengths: list[int] = []
    for question, expected, got in zip(questions, dense, policy, strict=True):
        if question.score is None:
            open_ended.append((expected, got))
            open_lengths.append(len(question.ids))
        else:
            row = question.score(expected.text), question.score(got.text), len(question.ids), got.cost
            rows.setdefault((question.task, question.length), []).append(row)
    cells = {key: Pairs(*zip(*found, strict=True)) for key, found in rows.items()}
    means = {
        length: _pooled([found for (task, at), found in cells.items() if at == length and task != DATA])
        for length in sorted({at for _, at in cells if at is not None})
    }
    agreement = None
    if open_ended:
        agreement = {**agree(open_ended), "computed": shares(open_lengths, [got.cost for _, got in open_ended])}
    return Comparison(cells, means, agreement)


def judge(
    questions: Sequence[Question], dense: Sequence[Reply], policy: Sequence[Reply], limits: Thresholds
) -> dict[str, Any]:
    """A policy's part of a certificate, as JSON types: verdict, reasons if it failed, a cell for each task and length,
    means over tasks for each length, and agreement on prompts without known answers.

    questions, dense, policy: as in `compare`.
    limits: what may be lost.
    """
    found = compare(questions, dense, policy)
    reasons = [*_reasons(found.cells, found.means, limits)]
    if found.agreement is not None and found.agreement["agreed_tokens"] * 100 < limits.min_agreement:
        reasons.append(
            f"{DATA}: {100 * found.agreement['agreed_tokens']:.1f} % of the dense answers' tokens come before the first "
            f"difference, at least {limits.min_agreement:g} % must"
        )
    return {"verdict": FAIL if reasons else PASS, "reasons": reasons, **found.as_json()}


def agree(replies: Sequence[tuple[Reply, Reply]]) -> dict[str, Any]:
    """How far a policy's answers follow the dense ones.

    replies: pairs of a dense and a policy's reply to the same prompt.
    Returns `n` and `same`, numbers of pairs and of equal answers; `same_interval_95` of their share, 0 to 1;
    `agreed_tokens`, the share of the dense answer's tokens before the first difference, 0 to 1, mean over prompts;
    `logprob_gap`, mean absolute difference of the log-probabilities of these tokens in nats, None if there are none.
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
    """The prompts of several cells together. The cells have equally many, so the loss is the mean of their losses."""
    return Pairs(
        [d for cell in cells for d in cell.dense],
        [p for cell in cells for p in cell.policy],
        [length for cell in cells for length in cell.lengths],
        [cost for cell in cells for cost in cell.costs],
    )


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
