# SPDX-License-Identifier: Apache-2.0
"""Which objects of a store hold the KV of a path, what they are called and which rows are in them.

A path is a namespace and the tokens from the root. Its KV is cut into three kinds of objects:

- *blocks*: global rows of 128 tokens each. Of a whole path, of which local heads keep all rows, they hold these, too.
- *ends*: what it takes to go on at one position beside the blocks before it, which is the local rows of the sink and of the window
  before it, and the global rows behind the last block.
- *marks*: empty objects, which say that there is an end within the 128 positions from here on. Whoever looks for the end of
  a prompt of which only the beginning is stored asks for marks first, and then for 128 positions.

The name of an object is a digest of all that decides its content: the *context* (model, head map, layout of rows), the
namespace (tenant, adapter, mode) and every token up to its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from redknot_sglang.plan.spans import Spans, union

# Tokens of a block: megabytes of a model of 8 billion parameters, whose objects cost a store as much as their bytes do.
BLOCK = 128
Tokens = NDArray[np.int64]


class Kind(Enum):
    """A kind of object; the value ends its name."""

    BLOCK = "b"
    END = "e"
    MARK = "m"


@dataclass(frozen=True)
class Reach:
    """How far back local heads see. window, sink: W and S in tokens; W may exceed every path."""

    window: int
    sink: int

    def seen(self, end: int) -> Spans:
        """Positions whose local rows a path keeps to go on behind `end` tokens."""
        return union([(0, min(self.sink, end)), (max(0, end - self.window), end)])


@dataclass(frozen=True)
class Piece:
    """One object of a path.

    kind: what it holds.
    digest: 32 bytes, `digests` of the path at `end`.
    end: tokens of the path that its name stands for.
    rows: positions whose global and whose local rows it holds, in the order of its bytes.
    """

    kind: Kind
    digest: bytes
    end: int
    rows: tuple[Spans, Spans]

    @property
    def name(self) -> str:
        """Its name in the store."""
        return f"redknot-{self.digest.hex()}-{self.kind.value}"

    @property
    def counts(self) -> tuple[int, int]:
        """Global and local rows."""
        return _length(self.rows[0]), _length(self.rows[1])


def digests(context: bytes, namespace: str, tokens: Tokens, ends: Sequence[int]) -> list[bytes]:
    """Names of the beginnings of a path, SHA-256 each.

    context: 32 bytes, of what serves the path.
    namespace: of the path.
    tokens: int64, from the root on.
    ends: ascending numbers of tokens.
    """
    digest, salt = hashlib.sha256(context), namespace.encode("utf-8", "surrogatepass")
    digest.update(len(salt).to_bytes(8, "little") + salt)
    found, at, data = [], 0, np.ascontiguousarray(tokens, dtype="<i8")
    for end in ends:
        digest.update(data[at:end].data)
        found.append(digest.copy().digest())
        at = end
    return found


def block_ends(tokens: int) -> range:
    """Where the whole blocks of so many tokens end."""
    return range(BLOCK, tokens + 1, BLOCK)


def mark_of(end: int) -> int:
    """Where the mark of an end stands."""
    return end - end % BLOCK


def block(digest: bytes, end: int, whole: bool) -> Piece:
    """The block that ends at `end`. whole: whether the path is whole."""
    rows = [(end - BLOCK, end)]
    return Piece(Kind.BLOCK, digest, end, (rows, rows if whole else []))


def end_piece(digest: bytes, end: int, whole: bool, reach: Reach) -> Piece:
    """What it takes to go on behind `end` tokens beside the blocks before."""
    rest = union([(mark_of(end), end)])
    return Piece(Kind.END, digest, end, (rest, rest if whole else reach.seen(end)))


def mark(digest: bytes, end: int) -> Piece:
    """The mark at `end`."""
    return Piece(Kind.MARK, digest, end, ([], []))


def local_rows(end: int, whole: bool, reach: Reach) -> Spans:
    """Positions of which a path that ends at `end` has local rows in the store."""
    return union([(0, end)]) if whole else reach.seen(end)


def _length(spans: Spans) -> int:
    return sum(end - start for start, end in spans)
