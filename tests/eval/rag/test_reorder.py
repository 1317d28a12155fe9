# SPDX-License-Identifier: Apache-2.0
"""The client that puts documents in orders which earlier prompts began with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eval.rag.corpus import Question
from eval.rag.reorder import reordered
from eval.rag.traffic import Dialogue, Turn

ASKED = Question([], None, "lookup")


def first_turns(*documents: list[int]) -> list[Dialogue]:
    return [[Turn(list(turn), ASKED)] for turn in documents]


def orders(dialogues: list[Dialogue]) -> list[list[int]]:
    return [dialogue[0].documents for dialogue in dialogues]


def test_a_prompt_begins_as_an_earlier_one_as_far_as_it_has_the_documents() -> None:
    # Document 5 comes in three prompts, 7 in two, and the others in one.
    found = orders(reordered(first_turns([7, 1, 5], [2, 5, 7], [3, 4, 5])))
    assert found == [[5, 7, 1], [5, 7, 2], [5, 3, 4]]


def test_the_longest_beginning_counts_not_the_first_document() -> None:
    found = orders(reordered(first_turns([1, 2], [1, 3], [1, 4], [2, 3, 5], [2, 3, 6], [2, 3, 5, 1])))
    assert found[:5] == [[1, 2], [1, 3], [1, 4], [2, 3, 5], [2, 3, 6]]
    # With 1 in front, which comes in most prompts, two documents would be found, and so three.
    assert found[5] == [2, 3, 5, 1]


def test_later_turns_and_documents_that_come_twice_stay() -> None:
    dialogue = [Turn([4, 2, 4], ASKED), Turn([9, 1], ASKED)]
    (found,) = reordered([dialogue])
    assert sorted(found[0].documents) == [2, 4, 4] and found[1:] == dialogue[1:]
    assert dialogue[0].documents == [4, 2, 4], "the caller's dialogues are as they were"


@given(st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), max_size=12))
def test_every_prompt_has_its_documents(drawn: list[list[int]]) -> None:
    found = orders(reordered(first_turns(*drawn)))
    assert [sorted(order) for order in found] == [sorted(order) for order in drawn]
