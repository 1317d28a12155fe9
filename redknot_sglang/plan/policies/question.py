# SPDX-License-Identifier: Apache-2.0
"""The policy that keeps the documents that the question asks for, computes them in their context, and drops the others."""

from __future__ import annotations

from dataclasses import dataclass

from redknot_sglang.plan.policies.base import Policy

_MOST_DOCUMENTS = 1 << 10


@dataclass(frozen=True)
class WantedDocuments(Policy):
    """Keeps the `documents` segments that the text behind the last one (the question) asks for, and leaves out all
    others.

    The choice is made by attention: the *retrieval heads* that the head map names look from the question at the keys of
    every segment, where the question and each segment are computed right behind the lead (`reuse/question.py`). The
    request then runs in exact mode, as if its prompt had been the lead, the chosen segments in their order, and all
    text outside segments. So its KV is exact, and only the choice is a guess. The reason for leaving documents out: on
    pretrained models, documents that were computed alone and stay visible do harm, the more of them the more (measured:
    eval/NOTES.md, "Real weights").
    """

    documents: int

    kind = "question"
    pattern = "question:N"
    meaning = (
        "the N segments that the text behind the last one asks for, all others are left out; needs retrieval heads"
    )
    selects = True

    @classmethod
    def parse(cls, argument: str | None) -> WantedDocuments | None:
        """A whole number of documents, at least one."""
        documents = int(argument) if argument is not None and argument.isdecimal() else 0
        return cls(documents) if 0 < documents <= _MOST_DOCUMENTS else None

    @property
    def name(self) -> str:
        """question:N."""
        return f"{self.kind}:{self.documents}"

    def count(self, rows: int) -> int:
        """Always 0: what is left of the prompt is computed as in exact mode."""
        return 0
