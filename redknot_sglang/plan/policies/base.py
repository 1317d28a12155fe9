# SPDX-License-Identifier: Apache-2.0
"""What a repair policy is: it says which rows of a reused segment are computed again in their true context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from redknot_sglang.plan.spans import Spans


class Policy(ABC):
    """A repair policy. Each kind is a frozen dataclass in a file of this folder, where it is found without being listed
    anywhere.

    kind: what its name has before the colon.
    pattern: its name as users write it, with a capital letter for the argument.
    meaning: what it repairs, for help texts; empty where the pattern says it.
    probes: True if its rows are chosen by a *probe* (`reuse/probe.py`) that looks at the segments' KV once that is
        there: `count` rows of each segment. Otherwise its rows are known by position: `repaired`.
    selects: True if it chooses whole segments, by the text behind the last one, and leaves the others out of the
        prompt.
    documents: how many segments a policy that selects keeps.
    keeps_whole: True if any row of a segment may be repaired. Then local heads keep all rows of cached segments, not
        only sink and window. A policy that probes needs this, because what a probe looks at is kept beside local slots.
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
        """The policy with this argument, or None if it cannot have this one.

        argument: what stands behind the colon of its name; None if there is no colon.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name as users write it; equal policies have the same one. `parse_repair` reads it, certificates and keys
        hold it.
        """

    @abstractmethod
    def count(self, rows: int) -> int:
        """How many rows are repaired, at most, of a segment of `rows` rows."""

    def repaired(self, start: int, end: int) -> Spans:
        """The rows of the segment [start, end) that are repaired because of where they stand; none if a probe chooses
        them.
        """
        return []
