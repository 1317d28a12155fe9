# SPDX-License-Identifier: Apache-2.0
"""Reading a path: first how much of it the store has, then its rows into host slots that the scheduler has taken for it."""

from __future__ import annotations

import logging

from redknot_sglang.errors import WithdrawnError
from redknot_sglang.store import envelope, objects
from redknot_sglang.store.backends import Found, Objects
from redknot_sglang.store.envelope import Envelope, Refusal
from redknot_sglang.store.figures import Figures
from redknot_sglang.store.jobs import Fetching, Guard
from redknot_sglang.store.objects import BLOCK, Piece, Reach
from redknot_sglang.store.rows import HostRows, Staging

logger = logging.getLogger(__name__)

# Marks whose positions are asked for an end, of one path.
_MARKS = 8


class Reader:
    """Runs in one thread. Parameters as of the Writer; threshold: tokens that are worth fetching."""

    def __init__(
        self,
        store: Objects,
        seal: Envelope,
        rows: HostRows,
        reach: Reach,
        guard: Guard,
        figures: Figures,
        threshold: int,
    ) -> None:
        self._store, self._seal, self._rows, self._reach = store, seal, rows, reach
        self._guard, self._figures, self._threshold = guard, figures, threshold
        self._staging = Staging(rows.largest(reach))
        self._said: set[Refusal] = set()
        store.use(self._staging.memory)

    def look(self, job: Fetching) -> None:
        """Note how much of a path the store has, and in which objects; nothing if it is not worth fetching. Raises StoreError."""
        tokens = len(job.tokens)
        ends = list(objects.block_ends(tokens))
        names = self._digests(job, at := sorted({0, *ends, tokens}))
        blocks = [objects.block(names[end], end, job.whole) for end in ends]
        marks = [objects.mark(names[end], end) for end in (0, *ends)]
        last = objects.end_piece(names[tokens], tokens, job.whole, self._reach)
        assert at[-1] == tokens
        there = self._store.exist([piece.name for piece in (*blocks, *marks, last)])
        # What the tree has already need not be in the store: its blocks are asked for when it is known what of it is there.
        first = job.have // BLOCK
        whole_run = next((number for number in range(first, len(blocks)) if not there[number]), len(blocks))
        marked = [piece.end // BLOCK for piece, exists in zip(marks, there[len(blocks) :], strict=False) if exists]
        found = last if there[-1] and whole_run == len(blocks) else self._search(job, whole_run, marked)
        if found is not None and found.end - job.have >= self._threshold:
            job.end = found.end
            job.pieces = [piece for piece in blocks if piece.end <= found.end] + [found]

    def _search(self, job: Fetching, run: int, marked: list[int]) -> Piece | None:
        """The farthest end behind blocks that are all there. run: how many blocks. marked: numbers of blocks with ends in them."""
        for number in [number for number in reversed(marked) if number <= run][:_MARKS]:
            first, stop = max(number * BLOCK, job.have + 1), min((number + 1) * BLOCK, len(job.tokens) + 1)
            names = self._digests(job, range(first, stop))
            ends = [objects.end_piece(names[end], end, job.whole, self._reach) for end in range(first, stop)]
            there = self._store.exist([piece.name for piece in ends])
            for piece, exists in zip(reversed(ends), reversed(there), strict=True):
                if exists:
                    return piece
        return None

    def _digests(self, job: Fetching, at: list[int] | range) -> dict[int, bytes]:
        return dict(zip(at, objects.digests(self._seal.context, job.namespace, job.tokens, at), strict=True))

    def read(self, job: Fetching) -> bool:
        """Read a path's rows into its slots. Returns whether all came. Raises StoreError, and WithdrawnError once its slots are not its
        own.
        """
        assert job.slots is not None
        wanted = [piece for piece in job.pieces if self._rows.is_wanted(piece, job.slots)]
        while wanted:
            if job.withdrawn:
                raise WithdrawnError
            batch = self._staging.take(wanted, self._rows.size_of)
            found = self._store.get([(piece.name, data) for piece, data in batch])
            for (piece, data), state in zip(batch, found, strict=False):
                if state is Found.MISSING:
                    return False
                refusal = Refusal.CUT if state is Found.ODD else self._seal.refusal(piece, data)
                if refusal is not None:
                    self._refuse(piece, refusal)
                    return False
                with self._guard.touching(job):
                    self._rows.unpack(piece, job.slots, data[envelope.SIZE :])
                self._figures.objects["read"] += 1
                self._figures.size["read"] += data.nbytes
            wanted = wanted[len(batch) :]
        return True

    def _refuse(self, piece: Piece, why: Refusal) -> None:
        """Count an object that is not used, say it once for each reason, and remove it, so that it is written anew."""
        self._figures.refused[why] += 1
        if why not in self._said:
            self._said.add(why)
            logger.warning(
                "RedKnot storage: object %s is not used: %s; what it holds is computed. Others like it are only counted, in "
                "GET /redknot/status",
                piece.name,
                why.value,
            )
        self._store.remove(piece.name)
