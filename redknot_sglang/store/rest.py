# SPDX-License-Identifier: Apache-2.0
"""A store that fails is left alone for a while, so that requests do not wait for it one after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

logger = logging.getLogger(__name__)

# Seconds: after the first failure, and at most.
SHORTEST, LONGEST = 1.0, 60.0


class Rest:
    """Whether to ask the store.

    what: what is not done meanwhile, for the log, where an outage is said once when it begins and once when it ends.
    clock: seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = monotonic) -> None:
        self._what, self._clock = what, clock
        self._seconds, self._until = 0.0, 0.0
        self.failures = 0

    @property
    def is_over(self) -> bool:
        """Whether the store may be asked now."""
        return self._clock() >= self._until

    @property
    def is_failing(self) -> bool:
        """Whether nothing has worked since the last failure."""
        return self._seconds > 0

    def failed(self, why: str) -> None:
        """The store failed: it rests, for twice as long as the last time unless something worked since."""
        if not self.is_failing:
            logger.warning(
                "RedKnot storage: %s, since %s; requests are computed, and it is tried again", self._what, why
            )
        self.failures += 1
        self._seconds = min(LONGEST, 2 * self._seconds) if self._seconds else SHORTEST
        self._until = self._clock() + self._seconds

    def worked(self) -> None:
        """The store did what it was asked."""
        if self.is_failing:
            logger.warning("RedKnot storage: the store works again")
        self._seconds = self._until = 0.0
