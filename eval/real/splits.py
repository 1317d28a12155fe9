# SPDX-License-Identifier: Apache-2.0
"""Calibration and held-out questions that share no page: what a map was found on says nothing about what it is certified on.

Questions that need passages of one page belong together, and so do, through them, all their pages: these are groups. A group
lies in one split, and so do its passages, as needed ones and as distractors. Which split is a matter of a hash of the group's
first page, so neither seeds nor lengths move a question from one to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from eval.real.sources import Passage, Question, words

CALIBRATION, HELD_OUT = "calibration", "held-out"
SPLITS = (CALIBRATION, HELD_OUT)
# Of 256: calibration needs few questions, and a certificate many.
_CALIBRATION_SHARE = 64
SHORTEST, LONGEST = 3, 60


@dataclass(frozen=True)
class Part:
    """A split. questions: those fit to be asked, in the source's order. passages: all that may stand in its prompts."""

    questions: tuple[Question, ...]
    passages: tuple[Passage, ...]


def split(questions: Sequence[Question], name: str) -> Part:
    """The split `name`, one of `SPLITS`."""
    groups = _Groups()
    for question in questions:
        # The question itself as well: some are in a source twice, with other passages.
        for page in (passage.page for passage in question.needed):
            groups.join(words(question.text), page)
    chosen = {page for page, leader in groups.leaders().items() if _split_of(leader) == name}
    given = dict.fromkeys(p for question in questions for p in (*question.needed, *question.others))
    passages = [p for p in given if (p.page in chosen if p.page in groups.above else _split_of(p.page) == name)]
    asked = [q for q in questions if q.needed[0].page in chosen and is_fit(q)]
    return Part(tuple({words(q.text): q for q in asked}.values()), tuple({p.words: p for p in passages}.values()))


def is_fit(question: Question) -> bool:
    """Whether a right answer means something.

    A passage has to tell it and the question must not; it is long enough not to come up by chance, and short enough to be said.
    """
    told = words(question.text)
    return (
        any(passage.tells(question.answers) for passage in question.needed)
        and all(len(words(answer).strip()) >= SHORTEST and words(answer) not in told for answer in question.answers)
        and len(question.answers[0]) <= LONGEST
    )


def _split_of(page: str) -> str:
    return CALIBRATION if hashlib.sha256(page.encode()).digest()[0] < _CALIBRATION_SHARE else HELD_OUT


class _Groups:
    """Pages that belong together. above: of each page another of its group, or itself."""

    def __init__(self) -> None:
        self.above: dict[str, str] = {}

    def join(self, one: str, other: str) -> None:
        """Put the groups of two pages together; each may be new."""
        a, b = self._top(one), self._top(other)
        # The first page in the alphabet leads, whatever the order of the questions.
        self.above[max(a, b)] = min(a, b)

    def leaders(self) -> dict[str, str]:
        """The first page of each page's group."""
        return {page: self._top(page) for page in self.above}

    def _top(self, page: str) -> str:
        above = self.above.setdefault(page, page)
        while above != self.above[above]:
            above = self.above[above]
        self.above[page] = above
        return above
