# SPDX-License-Identifier: Apache-2.0
"""Writing a path: what of it the store has not got is packed and sealed, a few objects at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from redknot_sglang.store import envelope, objects
from redknot_sglang.store.backends import Objects
from redknot_sglang.store.envelope import Envelope
from redknot_sglang.store.figures import Figures
from redknot_sglang.store.jobs import Guard, Saving
from redknot_sglang.store.objects import Piece, Reach
from redknot_sglang.store.rows import HostRows, Staging


class Writer:
    """Runs in one thread.

    store: where objects go. seal: the headers of this server. rows: its host memory. reach: of local heads.
    """

    def __init__(
        self, store: Objects, seal: Envelope, rows: HostRows, reach: Reach, guard: Guard, figures: Figures
    ) -> None:
        self._store, self._seal, self._rows, self._reach = store, seal, rows, reach
        self._guard, self._figures = guard, figures
        self._staging = Staging(rows.largest(reach))
        store.use(self._staging.memory)

    def save(self, job: Saving) -> None:
        """Write what the store lacks of a path. Raises StoreError, and WithdrawnError once its slots are not its own."""
        pieces = self._pieces(job)
        there = self._store.exist([piece.name for piece in pieces])
        missing = [piece for piece, exists in zip(pieces, there, strict=True) if not exists]
        while missing:
            batch = self._staging.take(missing, self._rows.size_of)
            for piece, data in batch:
                self._pack(job, piece, data)
            self._store.put([(piece.name, data) for piece, data in batch])
            self._figures.objects["written"] += len(batch)
            self._figures.size["written"] += sum(data.nbytes for _, data in batch)
            missing = missing[len(batch) :]

    def _pieces(self, job: Saving) -> list[Piece]:
        """The objects of a path, so that what needs others comes behind them."""
        blocks = list(objects.block_ends(job.ends[-1]))
        marks = [objects.mark_of(end) for end in job.ends]
        at = sorted({*blocks, *job.ends, *marks})
        names = dict(zip(at, objects.digests(self._seal.context, job.namespace, job.tokens, at), strict=True))
        return [
            *(objects.block(names[end], end, job.whole) for end in blocks),
            *(objects.end_piece(names[end], end, job.whole, self._reach) for end in job.ends),
            *(objects.mark(names[end], end) for end in sorted(set(marks))),
        ]

    def _pack(self, job: Saving, piece: Piece, data: Tensor) -> None:
        assert job.slots is not None
        with self._guard.touching(job):
            self._rows.pack(piece, job.slots, data[envelope.SIZE :])
        self._seal.seal(piece, data)


def slots_of(parts: list[tuple[int, Tensor | None]]) -> Tensor:
    """Host slots by position.

    parts: one behind the other, each with its number of positions and their slots, int64, or None for none.
    Returns int64 [positions], -1 for none.
    """
    return torch.cat([torch.full((count,), -1) if slots is None else slots.cpu() for count, slots in parts])
