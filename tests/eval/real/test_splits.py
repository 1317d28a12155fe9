# SPDX-License-Identifier: Apache-2.0
"""Splits share no question, no page and no passage, and what lies in which depends on nothing but the pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eval.real.sources import Passage, Question, read_source, words
from eval.real.splits import CALIBRATION, HELD_OUT, SPLITS, Part, is_fit, split
from tests.eval.real.test_sources import DATA

PAGES = st.integers(0, 40).map(lambda n: Passage(f"Page {n}", f"on page {n} stands answer {n}"))


@st.composite
def sources(draw: st.DrawFn) -> list[Question]:
    """Questions that share pages, and some of which are there twice."""
    made = []
    for number in range(draw(st.integers(1, 30))):
        needed = tuple(draw(st.lists(PAGES, min_size=1, max_size=3, unique=True)))
        others = tuple(p for p in draw(st.lists(PAGES, max_size=3, unique=True)) if p not in needed)
        text = f"what stands there {draw(st.integers(0, number))}"
        made.append(Question(text, (needed[0].text[-9:].strip(),), needed, others))
    return made


def texts(part: Part) -> set[str]:
    return {words(question.text) for question in part.questions}


@given(sources())
def test_nothing_is_shared(questions: list[Question]) -> None:
    a, b = (split(questions, name) for name in SPLITS)
    assert not texts(a) & texts(b)
    pages = [{passage.page for passage in part.passages} for part in (a, b)]
    assert not pages[0] & pages[1]
    for part, own in zip((a, b), pages, strict=True):
        assert {passage.page for question in part.questions for passage in question.needed} <= own
    given_pages = {p.page for question in questions for p in (*question.needed, *question.others)}
    assert pages[0] | pages[1] == given_pages
    assert texts(a) | texts(b) == {words(question.text) for question in questions if is_fit(question)}


@given(sources(), st.randoms(use_true_random=False))
def test_order_does_not_matter(questions: list[Question], rng: object) -> None:
    mixed = questions[:]
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    for name in SPLITS:
        assert texts(split(mixed, name)) == texts(split(questions, name))


def test_shares_of_the_tracked_file() -> None:
    questions = read_source(DATA)
    sizes = {name: len(split(questions, name).questions) for name in SPLITS}
    assert sum(sizes.values()) == len(questions) and 0 < sizes[CALIBRATION] < sizes[HELD_OUT]


def test_fit_questions() -> None:
    passage = Passage("Rivers", "The Nile is 6,650 km long; the Po is shorter.")

    def fit(text: str, *answers: str) -> bool:
        return is_fit(Question(text, answers, (passage,), ()))

    assert fit("which river is long", "the Nile") and fit("which river is long", "The Volga", "Nile")
    assert not fit("which river is long", "Volga")  # not told
    assert not fit("which river is shorter", "Po") and not fit("which river is shorter", "the Po", "Po")  # by chance
    assert not fit("is the Nile long", "Nile")  # told by the question
    assert not fit("which", passage.text + " " * 20 + passage.text, "Nile")  # a long one
