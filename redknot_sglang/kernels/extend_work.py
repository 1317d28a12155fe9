# SPDX-License-Identifier: Apache-2.0
"""Work of an extend: tiles of rows, and items that are each a stretch of one tile's keys.

Tiles alone fill a GPU badly where rows are few, or where late rows read many keys and early ones few. A tile may
therefore be cut into items of about equal length, which run side by side and are merged. All of it is decided on
the host from lengths and positions that are known there, so equal batches get equal items.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import NamedTuple

from .batch import ExtendBatch, ScatteredBatch

# Parts of one row at most: more would cost the merge more than the GPU still gains in parallelism.
MAX_PARTS = 64
# Times below are in steps. A step is one turn of the kernel's loop, 1.7 us on an H200 with D 128.
# The shortest item that is worth a program of its own.
_LEAST = 8
# What it takes to start and end an item.
_START = 2
# What it takes to launch the merge.
_LAUNCH = 4
# Parts of one head that are merged in the time of a step.
_PARTS_PER_STEP = 32
# How many items for each processor are tried.
_WAVES = (1, 2, 4)
# Tiles are cut only if the estimated time falls to this share: the estimate is not exact enough for smaller gains.
_WORTH = 0.95
MOST_WAVES = max(_WAVES)


class Tile(NamedTuple):
    """Adjacent rows of q that one program computes together.

    request: index in the batch.
    row: first row in q.
    rows: how many rows.
    position: position of the first row.
    end: position of the last row plus 1.
    """

    request: int
    row: int
    rows: int
    position: int
    end: int


class Item(NamedTuple):
    """A tile's rows over a stretch of their request's keys. Kernels read these fields in this order.

    request: index in the batch.
    row: first row in q.
    rows: how many rows.
    position: position of the first row.
    first: first key.
    end: last key plus 1.
    part: number of the part that the result is, to be merged with others; -1 if these are all keys of the tile.
    """

    request: int
    row: int
    rows: int
    position: int
    first: int
    end: int
    part: int


class Merge(NamedTuple):
    """Parts whose merge is the result of a tile. Kernels read these fields in this order.

    row: first row in q.
    rows: how many rows.
    part: first part.
    parts: how many parts follow each other.
    """

    row: int
    rows: int
    part: int
    parts: int


@dataclass(frozen=True)
class Work:
    """All work of an extend in one class.

    items: in the order in which to start them, longest first.
    merges: what is merged after them.
    """

    items: list[Item]
    merges: list[Merge]

    @property
    def parts(self) -> int:
        """Parts of all merges."""
        return sum(merge.parts for merge in self.merges)


def tiles_of(batch: ExtendBatch, rows_per_tile: int) -> list[Tile]:
    """The batch cut into tiles of at most ``rows_per_tile`` adjacent rows of one request, in the order of q."""
    tiles = []
    for request, start in enumerate(batch.qo_indptr[:-1]):
        positions: Sequence[int] = range(batch.prefix_lens_cpu[request], batch.seq_lens_cpu[request])
        if isinstance(batch, ScatteredBatch):
            positions = batch.positions_cpu[request]
        for first in range(0, len(positions), rows_per_tile):
            last = min(first + rows_per_tile, len(positions)) - 1
            tiles.append(Tile(request, start + first, last + 1 - first, positions[first], positions[last] + 1))
    return tiles


def whole_tiles(tiles: Sequence[Tile]) -> Work:
    """Work that cuts no tile: every tile is an item."""
    return _cut(tiles, 1, [1] * len(tiles))


def split_tiles(tiles: Sequence[Tile], step: int, heads: int, processors: int) -> Work:
    """The work that should end first, with tiles cut where that gains enough.

    tiles: of the batch.
    step: keys that an item takes at a time.
    heads: KV heads; every item runs once for each.
    processors: programs that run at once.
    """
    steps, whole = [-(-tile.end // step) for tile in tiles], [1] * len(tiles)
    bearable = _WORTH * _cost(steps, whole, heads, processors)
    parts = whole
    # However tiles are cut, the processors cannot all end before their mean load is done.
    if sum(n + _START for n in steps) * heads / processors < bearable:
        choices = [_parts(steps, waves * processors // heads) for waves in _WAVES]
        costs = [_cost(steps, choice, heads, processors) for choice in choices]
        if min(costs) < bearable:
            parts = choices[costs.index(min(costs))]
    return _cut(tiles, step, parts)


def _parts(steps: Sequence[int], items: int) -> list[int]:
    """Parts of each tile, for the shortest items that are no more than this; whole tiles where those are more."""
    longest = max(steps)
    lengths = range(min(longest, max(_LEAST, -(-longest // MAX_PARTS))), longest)
    # Longer items are fewer: the key is False for lengths that make too many items, and True from some length on.
    found = bisect_left(lengths, True, key=lambda length: sum(-(-n // length) for n in steps) <= items)
    length = lengths[found] if found < len(lengths) else longest
    return [-(-n // length) for n in steps]


def _cost(steps: Sequence[int], parts: Sequence[int], heads: int, processors: int) -> float:
    """Time until all is merged, in steps: a processor takes the next item, longest first, when it is done with one."""
    busy = [0] * processors
    for length in sorted((-(-n // cut) for n, cut in zip(steps, parts, strict=True) for _ in range(cut)), reverse=True):
        for _ in range(heads):
            heapreplace(busy, busy[0] + length + _START)
    merged = sum(cut for cut in parts if cut > 1)
    return max(busy) + (_LAUNCH + merged * heads / _PARTS_PER_STEP if merged else 0)


def _cut(tiles: Sequence[Tile], step: int, parts: Sequence[int]) -> Work:
    """Items whose lengths differ by at most one step within a tile."""
    items: list[Item] = []
    merges: list[Merge] = []
    part = 0  # of the next tile that is cut
    for tile, cut in zip(tiles, parts, strict=True):
        rows, steps = tile[:4], -(-tile.end // step)
        if cut == 1:
            items.append(Item(*rows, 0, tile.end, -1))
            continue
        merges.append(Merge(tile.row, tile.rows, part, cut))
        for index in range(cut):
            first, stop = steps * index // cut * step, steps * (index + 1) // cut * step
            items.append(Item(*rows, first, min(stop, tile.end), part + index))
        part += cut
    # The longest start first, so that none of them is still running when all others have ended.
    items.sort(key=lambda item: item.first - item.end)
    return Work(items, merges)
