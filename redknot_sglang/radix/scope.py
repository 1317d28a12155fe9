# SPDX-License-Identifier: Apache-2.0
"""What a call into the tree means beyond its arguments.

SGLang's tree calls our component of it back with SGLang's own signatures, which have no room for what we need to know
there. So the caller opens a *scope*: for the time of a `with` block these facts are in force, and the component reads
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from redknot_sglang.plan.plan import Plan

ALL = 1 << 40  # more positions than any path has


@dataclass(frozen=True)
class Meaning:
    """What the calls under way mean. The defaults are those of the tree's ordinary calls.

    A node is *live* if its tokens have local slots, else it is a *tombstone*.

    plan: the plan of the segmented request that the calls are for, by which keys are marked; None for a request of
        exact mode.
    whole: whether a path can be reused up to a place only if everything before that is live.
    span: how many positions a lock reaches back; None for one window.
    own_path: whether the request that computes the path is the one that locks it: then its chunks' ends stay transient.
    over_dead: whether locks go on over tombstones. Most of a relocated segment has no local slots, and a path that is
        about to be loaded from the host does not have them yet.
    inserted: whether a match only looks for a path that its request has just put there, and so tells nothing about the
        request.
    """

    plan: Plan | None = None
    whole: bool = False
    span: int | None = None
    own_path: bool = False
    over_dead: bool = False
    inserted: bool = False


class Scope:
    """What is in force in one tree."""

    def __init__(self) -> None:
        self._now = Meaning()

    @property
    def now(self) -> Meaning:
        """What is in force at this moment."""
        return self._now

    @contextmanager
    def within(self, **changes: Any) -> Iterator[None]:
        """Within this block these fields of `Meaning` have other values. However the block ends, the former ones are
        back after it.
        """
        before = self._now
        self._now = replace(before, **changes)
        try:
            yield
        finally:
            self._now = before
