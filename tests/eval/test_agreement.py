# SPDX-License-Identifier: Apache-2.0
"""Comparison of two servers' replies: what counts as equal, tied and parted, and what the figures cover."""

from __future__ import annotations

import math

import pytest

from eval.agreement import Reply, compare

TOLERANCE = 0.02


def reply(tokens: list[int], logprobs: list[float], leads: list[float], forced: list[float]) -> Reply:
    return Reply(tokens, logprobs, leads, forced)


def test_equal_replies() -> None:
    one = reply([1, 2], [-0.5, -0.25], [1.0, 1.0], [-1.0])
    found = compare([one], [one], TOLERANCE)
    assert (found.same, found.ties, found.parted) == (1, 0, 0)
    assert (found.answer_max, found.forced_max, found.finite) == (0.0, 0.0, True)


@pytest.mark.parametrize(("lead", "tied"), [(0.01, True), (0.5, False)])
def test_the_lead_in_the_reference_says_what_a_tie_is(lead: float, tied: bool) -> None:
    """The other side's lead does not count; what follows the differing token is another text and is not compared."""
    ours = reply([1, 9, 5], [-0.5, -0.25, -9.0], [1.0, 1.0 - lead, 1.0], [-1.0])
    reference = reply([1, 2, 5], [-0.75, -0.25, -1.0], [1.0, lead, 1.0], [-1.5])
    found = compare([ours], [reference], TOLERANCE)
    assert (found.same, found.ties, found.parted) == (0, int(tied), int(not tied))
    assert (found.answer_mean, found.answer_max) == (0.25, 0.25)
    assert found.forced_mean == 0.5


def test_nothing_to_compare_passes_no_bound() -> None:
    found = compare([reply([1], [0.0], [9.0], [-1.0])], [reply([2], [0.0], [9.0], [-1.0])], TOLERANCE)
    assert math.isnan(found.answer_mean) and not found.answer_mean < 1e9


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_broken_numbers_show(broken: float) -> None:
    good, bad = reply([1], [-0.5], [1.0], [-1.0]), reply([1], [-0.5], [1.0], [broken])
    assert compare([good], [good], TOLERANCE).finite
    assert not compare([bad], [good], TOLERANCE).finite


def test_replies_of_different_prompts_are_refused() -> None:
    one = reply([1], [-0.5], [1.0], [-1.0])
    with pytest.raises(ValueError, match="zip"):
        compare([one, one], [one], TOLERANCE)
