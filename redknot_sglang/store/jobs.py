# SPDX-License-Identifier: Apache-2.0
"""What the scheduler and the background threads of the storage tier hand each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import Any

from torch import Tensor

from redknot_sglang.errors import WithdrawnError
from redknot_sglang.store.objects import Piece, Tokens


@dataclass(eq=False)
class Job:
    """A path that is written or read.

    tokens, namespace: of the path.
    whole: whether local heads keep all its rows.
    slots: int64 [tokens] each, global and local host slots by position, -1 where there is none or none is wanted. They belong to
        the job, or are locked for it, until it is done.
    lock: what the tree needs to release what it has locked for the job; None without.
    clears: how often this server had emptied the store when it handed the job over.
    """

    tokens: Tokens
    namespace: str
    whole: bool
    slots: tuple[Tensor, Tensor] | None = None
    lock: Any = None
    withdrawn: bool = False
    clears: int = 0


@dataclass(eq=False)
class Saving(Job):
    """A path to write.

    ends: ascending numbers of tokens behind which others may go on.
    node: where it ends in the tree.
    written: whether the store has all of it now.
    """

    ends: tuple[int, ...] = ()
    node: int = 0
    written: bool = False

    @cached_property
    def held(self) -> tuple[int, int]:
        """Host slots of each class that are locked for it."""
        assert self.slots is not None
        return int((self.slots[0] >= 0).sum()), int((self.slots[1] >= 0).sum())


class Stage(Enum):
    """How far a path that is fetched has come; the scheduler makes the steps from FOUND to READING and from READ to DONE."""

    LOOKING = auto()
    FOUND = auto()
    READING = auto()
    READ = auto()
    FAILED = auto()
    DONE = auto()


@dataclass(eq=False)
class Fetching(Job):
    """A path to read.

    have: its tokens that can be reused already, here.
    deadline: when nobody waits for it any more, as `monotonic` counts.
    end: how many of its tokens the store has. pieces: the objects that hold them.
    loaded: tokens of it that have come from the store.
    key: namespace and tokens as the tree knows them.
    """

    have: int = 0
    deadline: float = 0.0
    stage: Stage = Stage.LOOKING
    end: int = 0
    pieces: list[Piece] = field(default_factory=list)
    loaded: int = 0
    key: tuple[str | None, Any] = (None, ())

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.withdrawn or self.stage is Stage.DONE


class Guard:
    """Host slots of a job are touched by background threads only while nobody takes them back, and never after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def touching(self, job: Job) -> Iterator[None]:
        """Within this block a job's slots stay its own. Raises WithdrawnError if they are not."""
        with self._lock:
            if job.withdrawn:
                raise WithdrawnError
            yield

    def withdraw(self, job: Job) -> None:
        """Take back a job's slots. Waits for the object that is being packed or unpacked, at most."""
        with self._lock:
            job.withdrawn = True
