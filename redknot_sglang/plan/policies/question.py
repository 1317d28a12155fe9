# SPDX-License-Identifier: Apache-2.0
"""The policy that keeps the documents that the question asks for, computes them in their context, and drops the others."""

from __future__ import annotations

from dataclasses import dataclass

from redknot_sglang.plan.policies.base import Policy

_MOST_DOCUMENTS = 1 << 10


@dataclass(frozen=True)
class WantedDocuments(Policy):
    """Of the prompt's segments the `documents` that the text behind the last one asks for; the rest of them is left out.

    What asks is attention: the *retrieval heads* of the head map look from the text, computed right behind the lead, at the keys
    of every segment, computed behind the lead as well (`reuse/question.py`). The request then runs in exact mode, as if its prompt
    had been the lead, the chosen segments in their order, and all text beside segments. So nothing in its KV is approximate; what
    is, is the choice. On pretrained models documents that are visible without having been computed in context do harm, more the
    more there are of them (measured: eval/NOTES.md, "Real weights").
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
