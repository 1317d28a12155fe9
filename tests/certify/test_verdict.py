# SPDX-License-Identifier: Apache-2.0
"""From answers to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.certify.questions import DATA, Question
from redknot_sglang.certify.servers import Reply
from redknot_sglang.certify.verdict import Pairs, Thresholds, agree, judge
from redknot_sglang.measure.statistics import paired_difference_interval, wilson_interval

LIMITS = Thresholds(max_loss=1.0, max_task_loss=2.0, min_agreement=90, min_dense=50)
N = 100


def cell(task: str, wrong: int, length: int | None = 1024, n: int = N) -> tuple[list[Question], list[Reply]]:
    """Questions of one cell and answers of which the first `wrong` are wrong."""
    questions = [Question(task, length, (1,), (), lambda text: text == "yes")] * n
    return questions, [Reply("no" if i < wrong else "yes", (1,)) for i in range(n)]


def verdict(*cells: tuple[str, int, int], limits: Thresholds = LIMITS) -> dict[str, Any]:
    """Judgement of (task, wrong answers of dense attention, wrong answers of the policy)."""
    questions, dense, policy = list[Question](), list[Reply](), list[Reply]()
    for task, wrong_dense, wrong_policy in cells:
        questions += cell(task, 0)[0]
        dense += cell(task, wrong_dense)[1]
        policy += cell(task, wrong_policy)[1]
    return judge(questions, dense, policy, limits)


def test_nothing_lost_passes() -> None:
    found = verdict(("a", 0, 0), ("b", 3, 3))
    assert (found["verdict"], found["reasons"]) == ("pass", [])
    assert [c["loss_points"] for c in found["cells"]] == [0, 0]
    assert found["cells"][1]["dense"] == {
        "right": 97,
        "accuracy": 0.97,
        "interval_95": [round(end, 6) for end in wilson_interval(97, 100)],
    }
    assert found["means"][0]["n"] == 2 * N and found["agreement"] is None


def test_a_task_over_its_limit_fails_and_the_mean_is_of_all_tasks() -> None:
    found = verdict(("a", 0, 3), ("b", 0, 0), ("c", 0, 0), ("d", 0, 0))
    assert found["verdict"] == "fail"
    assert found["reasons"] == ["a at 1024 tokens: loses 3.00 points, allowed are 2"]
    assert found["means"][0]["loss_points"] == 0.75
    found = verdict(("a", 0, 2), ("b", 0, 2))
    assert found["reasons"] == ["mean of the tasks at 1024 tokens: loses 2.00 points, allowed are 1"]


def test_limits_are_inclusive_and_gains_are_no_loss() -> None:
    assert verdict(("a", 0, 2), ("b", 0, 0))["verdict"] == "pass"
    assert verdict(("a", 9, 0), ("b", 0, 2))["verdict"] == "pass"


def test_upper_ends_are_harder() -> None:
    assert verdict(("a", 0, 0))["verdict"] == "pass"
    found = verdict(("a", 0, 0), limits=replace(LIMITS, by="upper"))
    assert found["verdict"] == "fail" and "may lose (upper end of the 95 % interval) 3.70 points" in found["reasons"][0]
    assert verdict(("a", 0, 0), limits=Thresholds(5, 5, 90, 50, "upper"))["verdict"] == "pass"


def test_a_task_that_dense_attention_cannot_do_certifies_nothing() -> None:
    found = verdict(("a", 60, 60))
    assert found["reasons"] == [
        "a at 1024 tokens: dense attention gets 40.0 % right, under 50 %, so a loss says nothing"
    ]


def test_own_data_is_a_cell_without_length_and_not_in_the_mean() -> None:
    questions, dense = cell(DATA, 0, None)
    more, answers = cell("a", 0)
    found = judge([*questions, *more], [*dense, *answers], [*cell(DATA, 3, None)[1], *answers], LIMITS)
    assert found["reasons"] == ["data: loses 3.00 points, allowed are 2"]
    assert [mean["n"] for mean in found["means"]] == [N]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_pairs_count_what_they_hold(rows: list[tuple[bool, bool]]) -> None:
    pairs = Pairs([d for d, _ in rows], [p for _, p in rows])
    counts = [rows.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
    assert pairs.loss == pytest.approx(100 * (counts[1] - counts[2]) / len(rows))
    assert pairs.interval == pytest.approx([100 * end for end in paired_difference_interval(*counts)])


def replies(*tokens: Sequence[int], gap: float = 0.0) -> list[Reply]:
    return [Reply("", tuple(row), tuple(-0.5 - gap for _ in row)) for row in tokens]


def test_agreement_ends_at_the_first_difference() -> None:
    dense, policy = replies([1, 2, 3, 4], [5, 6]), replies([1, 2, 9, 4], [5, 6], gap=0.25)
    found = agree(list(zip(dense, policy, strict=True)))
    assert (found["n"], found["same"], found["agreed_tokens"], found["logprob_gap"]) == (2, 1, 0.75, 0.25)


@pytest.mark.parametrize(
    ("dense", "policy", "share"),
    [([], [], 1.0), ([], [1], 0.0), ([1, 2], [], 0.0), ([1], [1, 2], 1.0), ([1, 2], [1], 0.5)],
)
def test_answers_of_other_lengths_agree_as_far_as_they_go(dense: list[int], policy: list[int], share: float) -> None:
    found = agree(list(zip(replies(dense), replies(policy), strict=True)))
    assert found["agreed_tokens"] == share and found["same"] == (dense == policy)


def test_disagreement_without_answers_fails() -> None:
    questions = [Question(DATA, None, (1,), (), None)] * 2
    dense, policy = replies([1, 2, 3, 4], [5, 6]), replies([1, 2, 9, 4], [5, 6])
    assert judge(questions, dense, dense, LIMITS)["verdict"] == "pass"
    found = judge(questions, dense, policy, LIMITS)
    assert found["reasons"] == [
        "data: 75.0 % of the dense answers' tokens come before the first difference, at least 90 % must"
    ]
    assert judge(questions, dense, policy, replace(LIMITS, min_agreement=75))["verdict"] == "pass"
