# SPDX-License-Identifier: Apache-2.0
"""What calls into the tree mean beyond their arguments: SGLang's signatures have no room for it, and it calls back into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from redknot_sglang.plan.plan import Plan

ALL = 1 << 40  # more positions than any path has


@dataclass(frozen=True)
class Meaning:
    """The meaning of the calls that are under way; without a scope these are the tree's ordinary ones.

    plan: keys without a request of their own are those of this plan's request; None: they are plain.
    whole: a boundary is reusable only if every position before it is live.
    span: positions that locks reach back; None for one window.
    own_path: who locks is the request that computes the path, so that its chunk boundaries stay transient.
    over_dead: locks go on over tombstones, since most of a relocated segment has no local slots, and a path that is about to be
        loaded has not got them yet.
    inserted: a match is for a path that its request has computed, and tells nothing about the request.
    """

    plan: Plan | None = None
    whole: bool = False
    span: int | None = None
    own_path: bool = False
    over_dead: bool = False
    inserted: bool = False


class Scope:
    """The meaning in force, of one tree."""

    def __init__(self) -> None:
        self._now = Meaning()

    @property
    def now(self) -> Meaning:
        """What calls mean at this moment."""
        return self._now

    @contextmanager
    def within(self, **changes: Any) -> Iterator[None]:
        """Within this block these fields of `Meaning` are in force; behind it, however it ends, those of before."""
        before = self._now
        self._now = replace(before, **changes)
        try:
            yield
        finally:
            self._now = before
