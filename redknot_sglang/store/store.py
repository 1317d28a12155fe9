# SPDX-License-Identifier: Apache-2.0
"""The storage tier as the scheduler sees it: it hands over paths and picks up what has become of them, and never waits.

Two threads do the work, one that writes and one that reads, each with a queue that is bounded. The slots of a job stay locked or
taken until the tree has picked it up again, or takes it back.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from redknot_sglang.errors import StoreError, WithdrawnError
from redknot_sglang.store.backends import Objects
from redknot_sglang.store.envelope import Envelope
from redknot_sglang.store.figures import Figures
from redknot_sglang.store.jobs import Fetching, Guard, Job, Saving, Stage
from redknot_sglang.store.objects import Reach, Tokens
from redknot_sglang.store.reader import Reader
from redknot_sglang.store.rest import Rest
from redknot_sglang.store.rows import HostRows
from redknot_sglang.store.writer import Writer

logger = logging.getLogger(__name__)

# Paths that wait to be written and to be read.
_SAVES, _FETCHES = 256, 64


@dataclass(frozen=True)
class Patience:
    """How long requests wait for the store.

    waits: whether they wait at all; else what comes late is for the next ones.
    base: seconds for each path. per_token: seconds more for each of its tokens.
    threshold: tokens that are worth asking for.
    """

    waits: bool = True
    base: float = 1.0
    per_token: float = 0.25 / 1024
    threshold: int = 256


class Store:
    """One server's end of a store.

    name: of SGLang's backend, for the status.
    objects: the store.
    context: 32 bytes, of all that decides what rows mean: model, head map, layout.
    rows: the host's memory.
    reach: of local heads.
    patience: of requests.
    namespace_of: a namespace as the store knows it, or None if its paths cannot be told apart there.
    clears: how often this server has emptied the store.
    """

    def __init__(
        self,
        name: str,
        objects: Objects,
        context: bytes,
        rows: HostRows,
        reach: Reach,
        patience: Patience,
        namespace_of: Callable[[str], str | None] = lambda namespace: namespace,
    ) -> None:
        self.name, self.patience, self.reach, self.rows = name, patience, reach, rows
        self.figures = Figures()
        self.stopped: str | None = None
        self.clears = 0
        self._namespace_of = namespace_of
        self._guard = Guard()
        seal = Envelope(context)
        self._writer = Writer(objects, seal, rows, reach, self._guard, self.figures)
        self._reader = Reader(objects, seal, rows, reach, self._guard, self.figures, patience.threshold)
        self._objects = objects
        self.writing, self.reading = Rest("nothing is written"), Rest("nothing is read")
        self._saves: queue.Queue[Saving | None] = queue.Queue(_SAVES)
        self._fetches: queue.Queue[Fetching] = queue.Queue(_FETCHES)
        self._back: deque[Job] = deque()
        self.saving: dict[Saving, None] = {}
        self.fetching: dict[Fetching, None] = {}

    def start(self) -> None:
        """Start the threads."""
        for step, what in ((self.write_next, "writes"), (self.read_next, "reads")):
            threading.Thread(target=_forever, args=(step,), name=f"redknot-store-{what}", daemon=True).start()

    # ---- the scheduler's side -------------------------------------------------------------------------------------

    def room(self) -> bool:
        """Whether another path may be handed over to be written. If not, that is counted as skipped."""
        held = [sum(job.held[kind] for job in self.saving) for kind in (0, 1)]
        # What waits is locked on the host, and the rest of it must be enough for what comes from the device.
        fits = all(4 * n <= pool.size for n, pool in zip(held, self.rows.pools, strict=True))
        if self.stopped is None and fits and len(self.saving) < _SAVES and self.writing.is_over:
            return True
        self.figures.skipped += 1
        return False

    def save(self, job: Saving) -> None:
        """Write a path. It comes back by `picked_up`. There must be `room`."""
        namespace = self._namespace_of(job.namespace)
        self.saving[job] = None
        if namespace is None:
            self._back.append(job)
            return
        job.namespace, job.clears = namespace, self.clears
        if not _put(self._saves, job):
            self.figures.skipped += 1
            self._back.append(job)

    def fetch(self, tokens: Tokens, namespace: str, whole: bool, have: int) -> Fetching | None:
        """Look for a path, of which `have` tokens can be reused without the store.

        It comes back by `picked_up`. Returns None if it is not worth it, or nothing can be asked for now.
        """
        if len(tokens) - have < self.patience.threshold or self.stopped is not None:
            return None
        named = self._namespace_of(namespace) if self.reading.is_over and len(self.fetching) < _FETCHES else None
        if named is None:
            return None
        deadline = monotonic() + self.patience.base + self.patience.per_token * len(tokens)
        job = Fetching(
            np.asarray(tokens, dtype=np.int64), named, whole, have=have, deadline=deadline, clears=self.clears
        )
        if not _put(self._fetches, job):
            return None
        self.fetching[job] = None
        return job

    def read(self, job: Fetching) -> None:
        """Go on with a path that was found and has slots now."""
        job.stage = Stage.READING
        if not _put(self._fetches, job):
            job.stage = Stage.FAILED
            self._back.append(job)

    def picked_up(self) -> list[Job]:
        """Jobs that the scheduler has to go on with: savings that are done, and fetches that were found, read or have failed."""
        back = [self._back.popleft() for _ in range(len(self._back))]
        for job in back:
            if isinstance(job, Saving):
                self.saving.pop(job, None)
        return [job for job in back if not job.withdrawn]

    def late(self) -> list[Fetching]:
        """Fetches that are not done although their time is over; the caller withdraws them."""
        now = monotonic()
        late = [job for job in self.fetching if now > job.deadline]
        if late:
            self.reading.failed(f"no answer came within {self.patience.base:g} s and more for longer prompts")
        self.figures.lookups["late"] += len(late)
        return late

    def settle(self, job: Fetching) -> None:
        """A fetch is over."""
        job.stage = Stage.DONE
        self.fetching.pop(job, None)

    def withdraw(self, job: Job) -> None:
        """Take back a job's slots, at once; it does not come back."""
        self._guard.withdraw(job)
        if isinstance(job, Saving):
            self.saving.pop(job, None)
        else:
            assert isinstance(job, Fetching)
            self.settle(job)

    def forget(self) -> None:
        """The tree is emptied: no slot and no lock of any job is one any more."""
        for job in [*self.saving, *self.fetching]:
            self.withdraw(job)

    def stop(self, why: str) -> None:
        """Take no more jobs. The caller withdraws those that there are."""
        self.stopped = why

    def clear(self) -> None:
        """Remove all objects of the store, other servers' and models' too, in the background."""
        self.clears += 1
        _put(self._saves, None)

    @property
    def state(self) -> str:
        """`working`, `failing` while it rests after failures, or `stopped`."""
        if self.stopped is not None:
            return "stopped"
        return "failing" if self.writing.is_failing or self.reading.is_failing else "working"

    # ---- the threads ----------------------------------------------------------------------------------------------

    def write_next(self) -> None:
        """Write the path that has waited longest; wait for one if there is none."""
        job = self._saves.get()
        if job is None:
            self._try(self.writing, self._objects.clear)
            return
        if job.withdrawn:
            return
        if self.writing.is_over:
            job.written = self._try(self.writing, lambda: self._writer.save(job))
        else:
            self.figures.skipped += 1
        self._back.append(job)

    def read_next(self) -> None:
        """Do the next step with the path that has waited longest; wait for one if there is none."""
        job = self._fetches.get()
        if job.withdrawn:
            return
        if not self._try(self.reading, lambda: self._advance(job)):
            job.stage = Stage.FAILED
        self._back.append(job)

    def _advance(self, job: Fetching) -> None:
        if job.stage is Stage.LOOKING:
            self._reader.look(job)
            job.stage = Stage.FOUND
        else:
            job.stage = Stage.READ if self._reader.read(job) else Stage.FAILED

    @staticmethod
    def _try(rest: Rest, work: Callable[[], object]) -> bool:
        """Whether it worked. A thread outlives whatever a store's client raises."""
        try:
            work()
        except WithdrawnError:
            return False
        except StoreError as error:
            rest.failed(str(error))
            return False
        except Exception as error:
            logger.exception("RedKnot storage: an unexpected error")
            rest.failed(f"{type(error).__name__}: {error}")
            return False
        rest.worked()
        return True


def _forever(step: Callable[[], None]) -> None:
    while True:
        step()


def _put(jobs: queue.Queue[Any], job: Job | None) -> bool:
    """Whether there was room. What was withdrawn stays in a queue until its thread comes to it, which may hang."""
    try:
        jobs.put_nowait(job)
    except queue.Full:
        return False
    return True
