# SPDX-License-Identifier: Apache-2.0
"""What stands before the bytes of an object, so that one that is cut, garbled or not ours is never used.

128 bytes: a magic word, version, kind, the tokens that the name stands for, the length of what follows, context and digest as in
the name, and a checksum (XXH3, 128 bits) over all of that and the rows. The checksum finds accidents, not forgery: whoever can
write to the store can change answers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Any

import xxhash
from torch import Tensor

from redknot_sglang.store.objects import Kind, Piece

SIZE = 128
# Version 2: blocks of 128 tokens.
_MAGIC, _VERSION = b"RedKnot\x01", 2
_FIELDS = struct.Struct("<8sHHI QQ 32s32s")
_CHECKSUM = 16
_KINDS = {kind: number for number, kind in enumerate(Kind)}


class Refusal(Enum):
    """Why an object is not used."""

    CUT = "cut"  # it has fewer bytes, or more
    GARBLED = "garbled"  # its checksum is another, or it has no header of ours
    OTHER_MAP = "other_map"  # it is of another model, head map or layout
    OTHER_PATH = "other_path"  # it is of other tokens, or of another kind


@dataclass(frozen=True)
class Envelope:
    """Writes and checks headers. context: 32 bytes, of what is served here."""

    context: bytes

    def seal(self, piece: Piece, data: Tensor) -> None:
        """Write the header of an object.

        piece: which it is.
        data: uint8 [SIZE + bytes of its rows], contiguous, on the CPU; the rows are there, the first SIZE bytes are written.
        """
        view = _bytes(data)
        fields = _FIELDS.pack(
            _MAGIC, _VERSION, _KINDS[piece.kind], 0, piece.end, len(view) - SIZE, self.context, piece.digest
        )
        view[:SIZE] = fields.ljust(SIZE - _CHECKSUM, b"\0") + bytes(_CHECKSUM)
        view[SIZE - _CHECKSUM : SIZE] = _checksum(view)

    def refusal(self, piece: Piece, data: Tensor) -> Refusal | None:
        """Why an object that was read is not the one that was meant; None if it is.

        piece: the one that was meant.
        data: uint8, what was read; as in `seal`.
        """
        view = _bytes(data)
        magic, version, kind, _, end, size, context, digest = _FIELDS.unpack_from(view)
        if magic != _MAGIC or version != _VERSION:
            return Refusal.GARBLED
        if size != len(view) - SIZE:
            return Refusal.CUT
        if bytes(view[SIZE - _CHECKSUM : SIZE]) != _checksum(view):
            return Refusal.GARBLED
        if context != self.context:
            return Refusal.OTHER_MAP
        if (kind, end, digest) != (_KINDS[piece.kind], piece.end, piece.digest):
            return Refusal.OTHER_PATH
        return None


def _bytes(data: Tensor) -> memoryview:
    array: Any = data.numpy()
    return memoryview(array)


def _checksum(view: memoryview) -> bytes:
    digest = xxhash.xxh3_128(view[: SIZE - _CHECKSUM])
    digest.update(view[SIZE:])
    return digest.digest()
