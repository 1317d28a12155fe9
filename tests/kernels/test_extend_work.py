# SPDX-License-Identifier: Apache-2.0
"""Work of an extend: tiles cover the rows, items cover the keys of each tile once, and cutting shortens the work."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from redknot_sglang.kernels.batch import ExtendBatch, offsets
from redknot_sglang.kernels.extend_work import MAX_PARTS, Item, Tile, Work, _cost, split_tiles, tiles_of, whole_tiles
from tests.kernels.cases import make_case, make_spec, scatter

SPEC = make_spec(head_dim=8, n_global=1, n_local=1)


@st.composite
def tile_lists(draw: st.DrawFn) -> list[Tile]:
    """Tiles as they come: rows adjacent in q, ends ascending in a request and anything from one to the next."""
    tiles, row = [], 0
    for request, ends in enumerate(draw(st.lists(st.lists(st.integers(1, 40_000), min_size=1), min_size=1))):
        for end in sorted(ends):
            rows = draw(st.integers(1, min(end, 32)))
            tiles.append(Tile(request, row, rows, draw(st.integers(0, end - rows)), end))
            row += rows
    return tiles


def check(work: Work, tiles: list[Tile], step: int) -> None:
    """Each tile's keys once, by items in order that start at whole steps; merges name exactly the cut tiles."""
    assert all(a.end - a.first >= b.end - b.first for a, b in zip(work.items, work.items[1:], strict=False))
    own = {row: sorted(items, key=lambda item: item.first) for row, items in by_row(work)}
    assert len(own) == len(tiles)
    merged = iter(work.merges)
    part = 0
    for tile in tiles:
        items = own[tile.row]
        assert all(item[:4] == tile[:4] for item in items)
        assert [item.first for item in items] == [0, *(item.end for item in items[:-1])] and items[-1].end == tile.end
        assert all(item.first % step == 0 and item.first < item.end for item in items)
        if len(items) == 1:
            assert items[0].part == -1
            continue
        assert next(merged) == (tile.row, tile.rows, part, len(items))
        assert [item.part for item in items] == list(range(part, part + len(items)))
        part += len(items)
    assert next(merged, None) is None and work.parts == part


def by_row(work: Work) -> list[tuple[int, list[Item]]]:
    return [(row, list(items)) for row, items in groupby(sorted(work.items, key=lambda i: i.row), lambda i: i.row)]


@settings(deadline=None)
@given(tile_lists(), st.sampled_from([16, 32, 64]), st.sampled_from([1, 2, 8]), st.sampled_from([1, 4, 132]))
def test_items_cover_every_tile_once(tiles: list[Tile], step: int, heads: int, processors: int) -> None:
    check(whole_tiles(tiles), tiles, step)
    work = split_tiles(tiles, step, heads, processors)
    check(work, tiles, step)
    assert work == split_tiles(tiles, step, heads, processors), "equal batches get equal items"
    steps = [-(-tile.end // step) for tile in tiles]
    counts = {merge.row: merge.parts for merge in work.merges}
    parts = [counts.get(tile.row, 1) for tile in tiles]
    assert max(parts) <= MAX_PARTS
    # Parts are never so short that starting them is most of the work.
    assert all(n // cut >= 4 for n, cut in zip(steps, parts, strict=True) if cut > 1)
    # Cutting never makes the work longer.
    assert _cost(steps, parts, heads, processors) <= _cost(steps, [1] * len(tiles), heads, processors)
    if processors == 1:
        assert not work.merges


def test_few_tiles_fill_the_processors_and_many_stay_whole() -> None:
    """The batches that this was made for: 1,638 rows spread over 32K tokens, and a prefill of 8,192."""
    scattered = sorted(random.Random(0).sample(range(32_768), 1638))
    tiles = [Tile(0, row, 32, scattered[row], scattered[min(row + 31, 1637)] + 1) for row in range(0, 1638, 32)]
    work = split_tiles(tiles, 64, 1, 132)
    assert 2 * 132 - 52 < len(work.items) <= 2 * 132
    mean = sum(tile.end for tile in tiles) / len(work.items)
    assert work.items[0].end - work.items[0].first < 1.3 * mean
    chunk = [Tile(0, row, 32, row + 24_576, row + 24_608) for row in range(0, 8192, 32)]
    assert not split_tiles(chunk, 64, 1, 132).merges


def test_tiles_of_adjacent_and_of_scattered_rows() -> None:
    case = make_case(SPEC, [0, 3, 90], [70, 1, 33])
    assert tiles_of(case.extend, 32) == [
        (0, 0, 32, 0, 32),
        (0, 32, 32, 32, 64),
        (0, 64, 6, 64, 70),
        (1, 70, 1, 3, 4),
        (2, 71, 32, 90, 122),
        (2, 103, 1, 122, 123),
    ]
    batch = scatter(case, [[0, 9, 69], [0], [2, 30, 31, 32]])
    assert tiles_of(batch, 2) == [
        (0, 0, 2, 0, 10),
        (0, 2, 1, 69, 70),
        (1, 3, 1, 3, 4),
        (2, 4, 2, 92, 121),
        (2, 6, 2, 121, 123),
    ]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(1, 64))
def test_tiles_cover_the_rows(lens: list[int], rows_per_tile: int) -> None:
    case = make_case(SPEC, [5], [1])
    prefixes = [7 * i for i in range(len(lens))]
    seqs = [prefix + n for prefix, n in zip(prefixes, lens, strict=True)]
    batch: ExtendBatch = replace(case.extend, prefix_lens_cpu=prefixes, seq_lens_cpu=seqs)
    tiles = tiles_of(batch, rows_per_tile)
    rows = [row for tile in tiles for row in range(tile.row, tile.row + tile.rows)]
    assert rows == list(range(sum(lens)))
    starts = offsets(lens)
    for tile in tiles:
        assert tile.rows <= rows_per_tile and starts[tile.request] <= tile.row < starts[tile.request + 1]
        assert tile.position == prefixes[tile.request] + tile.row - starts[tile.request]
        assert tile.end == tile.position + tile.rows
