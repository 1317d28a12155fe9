# SPDX-License-Identifier: Apache-2.0
"""Between host slots and the bytes of objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from redknot_sglang.plan.spans import Spans, positions_of
from redknot_sglang.store import envelope
from redknot_sglang.store.objects import BLOCK, Kind, Piece, Reach

# Bytes of objects that are read or written at a time, if one is not larger.
_BATCH = 16 << 20
_ALIGNED = 64


class HostPool(Protocol):
    """Host memory of one head class, see `pool/host.py`."""

    size: int
    size_per_token: int

    def pack(self, slots: Tensor, data: Tensor) -> None: ...

    def unpack(self, slots: Tensor, data: Tensor, which: Tensor) -> None: ...


class HostRows:
    """Host memory of both head classes. pools: of global and of local heads."""

    def __init__(self, pools: Sequence[HostPool]) -> None:
        self.pools = tuple(pools)

    def size_of(self, piece: Piece) -> int:
        """Bytes of an object, its header included."""
        rows = zip(piece.counts, self.pools, strict=True)
        return envelope.SIZE + sum(count * pool.size_per_token for count, pool in rows)

    def largest(self, reach: Reach) -> int:
        """Bytes of the largest object that there can be."""
        path = self.pools[1].size
        spans: tuple[Spans, Spans] = [(0, BLOCK)], [(0, min(path, max(BLOCK, reach.window + reach.sink)))]
        return self.size_of(Piece(Kind.END, b"", 0, spans))

    def pack(self, piece: Piece, slots: tuple[Tensor, Tensor], data: Tensor) -> None:
        """Write an object's rows.

        piece: which they are.
        slots: of the path, by position, int64 each, -1 for none.
        data: uint8, of the size of the rows; changed in place.
        """
        at = 0
        for pool, spans, of_class in zip(self.pools, piece.rows, slots, strict=True):
            rows = of_class[_positions(spans)]
            assert bool((rows >= 0).all()), "an object holds a row that the host has not got"
            size = len(rows) * pool.size_per_token
            pool.pack(rows, data[at : at + size])
            at += size

    def unpack(self, piece: Piece, slots: tuple[Tensor, Tensor], data: Tensor) -> None:
        """Put an object's rows where they are wanted. Parameters as of `pack`; rows with slot -1 are left out."""
        at = 0
        for pool, spans, of_class in zip(self.pools, piece.rows, slots, strict=True):
            rows = of_class[_positions(spans)]
            wanted, size = rows >= 0, len(rows) * pool.size_per_token
            pool.unpack(rows[wanted], data[at : at + size], wanted)
            at += size

    def is_wanted(self, piece: Piece, slots: tuple[Tensor, Tensor]) -> bool:
        """Whether any row of an object has a slot to go to."""
        return any(
            bool((of_class[_positions(spans)] >= 0).any()) for spans, of_class in zip(piece.rows, slots, strict=True)
        )


class Staging:
    """Memory that objects pass through. largest: bytes of the largest object."""

    def __init__(self, largest: int) -> None:
        self.memory = torch.zeros(max(_BATCH, largest + _ALIGNED), dtype=torch.uint8)

    def take(self, pieces: Sequence[Piece], size_of: Callable[[Piece], int]) -> list[tuple[Piece, Tensor]]:
        """Room for as many of these objects as there is at a time, from the first on; at least one if there are any."""
        taken, at = [], 0
        for piece in pieces:
            size = size_of(piece)
            if at + size > len(self.memory):
                break
            taken.append((piece, self.memory[at : at + size]))
            at += -(-size // _ALIGNED) * _ALIGNED
        return taken


def _positions(spans: Spans) -> Tensor:
    return torch.from_numpy(positions_of(spans))
