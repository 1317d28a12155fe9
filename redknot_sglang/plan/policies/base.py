# SPDX-License-Identifier: Apache-2.0
"""What a repair policy is: it says which rows of a reused segment are computed again in their true context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from redknot_sglang.plan.spans import Spans


class Policy(ABC):
    """A repair policy. Each kind is a frozen dataclass in a file of this folder, where it is found by itself.

    kind: what its name has before the colon. pattern: its name as users write it, a capital letter for the argument.
    meaning: what it repairs, for help texts; empty where the pattern says it.
    probes: its rows are chosen by a probe, once the segments' KV is there, `count` of each segment; else they are those of
    `repaired`, known by their position. selects: it chooses among whole segments, `documents` of them, by the text behind the
    last one, and leaves the others out of the prompt. keeps_whole: any row may be repaired, so that local heads keep all rows of
    segments and not their sinks and windows only. A policy that probes rows needs that: what probes look at is kept by local
    slot.
    """

    kind: ClassVar[str]
    pattern: ClassVar[str]
    meaning: ClassVar[str] = ""
    probes: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    documents: int = 0
    keeps_whole: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def parse(cls, argument: str | None) -> Policy | None:
        """The policy with this argument, what stands behind the colon (None: no colon), or None if it cannot have that."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As users write it, the same for equal policies: `parse_repair` reads it, and certificates and keys hold it."""

    @abstractmethod
    def count(self, rows: int) -> int:
        """Most rows that are repaired of a segment of `rows` rows."""

    def repaired(self, start: int, end: int) -> Spans:
        """The rows of the segment [start, end) that are repaired for their position; none if a probe chooses them."""
        return []
