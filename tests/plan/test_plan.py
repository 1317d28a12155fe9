# SPDX-License-Identifier: Apache-2.0
"""Plans against their definition, position by position, and chunk by chunk."""

from __future__ import annotations

from array import array
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.batches import restore
from redknot_sglang.plan.gather import Runs, Stretch
from redknot_sglang.plan.options import make_plan, split_at
from redknot_sglang.plan.plan import CONTEXT_START, SEGMENT_START, Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.spans import runs_of


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, int]:
    """A plan and the length of its prompt; adjacent, one-token and empty segments included."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=2, max_size=16))
    borders = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    offsets = [at for a, b in pairwise(borders[:-1]) if draw(st.booleans()) for at in (a, b)]
    length = borders[-1] + draw(st.integers(1, 50))
    policy = parse_repair(draw(st.sampled_from(["none", "boundary:1", "boundary:4", "boundary:16", "blend:0.2"])))
    params = {
        "redknot_mode": "segmented",
        "redknot_segments": offsets,
        "redknot_repair": policy.name,
        "redknot_segment_lead": draw(st.sampled_from(["none", "lead"])),
    }
    plan = make_plan(params, length)
    plan = plan if plan is not None else Plan(((0, length - 1),), policy)
    choices = {}
    for start, end in plan.undecided(0):
        rows = draw(st.sets(st.integers(start, end - 1), max_size=9))
        choices[start, end] = np.array(sorted(rows), dtype=np.int64)
    return plan.choosing(choices), length


def computed_by_definition(plan: Plan, length: int) -> list[bool]:
    """Row by row: outside all segments, among the first k of one, or chosen."""
    kind, _, argument = plan.repair.name.partition(":")
    boundary = int(argument) if kind == "boundary" else 0
    computed = [True] * length
    for start, end in plan.segments:
        for at in range(start, end):
            chosen = plan.choices.get((start, end), np.array([], dtype=np.int64)).tolist()
            computed[at] = at < start + boundary or at in chosen
    return computed


@given(plans(), st.integers(1, 60), st.integers(1, 50), st.integers(0, 6))
def test_chunks_cover_the_prompt_and_compute_what_the_definition_says(
    drawn: tuple[Plan, int], budget: int, window: int, sink: int
) -> None:
    plan, length = drawn
    wanted = computed_by_definition(plan, length)
    assert wanted[-1], "the last row gives the first answer token"
    at, computed, live = 0, [], [False] * length
    while at < length:
        stop = plan.stretch(at, length, budget)
        rows, moved = plan.computed(at, stop).tolist(), plan.moved(at, stop)
        assert at < stop and len(rows) <= budget and sorted([*rows, *moved.tolist()]) == list(range(at, stop))
        if stop < length:
            assert wanted[stop - 1], "a chunk ends behind a computed row"
        assert plan.reuses(at) == (not all(wanted[at:]))
        local = moved[plan.local_rows(at, stop, window, sink)].tolist()
        for row in range(at, stop):
            live[row] = wanted[row] or row in local
        for row in rows:
            seen = {*range(min(row, sink)), *range(max(0, row - window + 1), row)}
            assert all(live[column] for column in seen), "a seen row is dead"
        assert all(live[seen] for seen in range(max(0, stop - window + 1), stop)), "the next row's window is dead"
        computed += rows
        at = stop
    assert computed == [row for row in range(length) if wanted[row]]


@given(plans(), st.integers(1, 4), st.integers(0, 5))
def test_local_rows_are_live_in_their_segment(drawn: tuple[Plan, int], window: int, sink: int) -> None:
    """What is relocated for local heads is a sink of the segment or in the window before its end."""
    plan, length = drawn
    for row in plan.moved(0, length)[plan.local_rows(0, length, window, sink)].tolist():
        start, end = next(span for span in plan.segments if span[0] <= row < span[1])
        tail = plan.origin + row - start < sink or row >= end - window + 1
        if not plan.repair.keeps_whole:
            assert tail, "only whole segments have local KV in their middle"


@given(plans(), st.integers(0, 60))
def test_choices_are_asked_for_once_and_only_where_needed(drawn: tuple[Plan, int], start: int) -> None:
    plan, length = drawn
    assert plan.undecided(0) == []
    fresh = Plan(plan.segments, plan.repair, plan.after_lead)
    behind = [segment for segment in plan.segments if segment[1] > start]
    assert fresh.undecided(start) == (behind if plan.repair.probes else [])
    paths, tokens = fresh.paths(range(length), start), list(range(length))
    if fresh.undecided(start):
        assert fresh.sources(start) == behind
        assert [at for path in paths for at in range(*path.span)] == tokens[: behind[-1][1]]
    else:
        assert [path.span for path in paths] == fresh.sources(start)
    for path in paths:
        assert list(path.key[path.origin :]) == tokens[slice(*path.span)]
        assert list(path.key[: path.origin]) == tokens[: path.origin]
        assert path.whole == (path.span in plan.segments and plan.repair.keeps_whole)
    assert fresh.identity == plan.identity


@given(plans())
def test_keys_differ_exactly_from_the_first_different_border_on(drawn: tuple[Plan, int]) -> None:
    plan, length = drawn
    tokens = array("q", range(7, 7 + length))
    key = plan.key(tokens)
    for row, (plain, marked) in enumerate(zip(tokens, key, strict=True)):
        starts = any(row == start for start, _ in plan.segments)
        resumes = any(row == end for _, end in plan.segments) and not starts
        assert marked - plain == starts * SEGMENT_START + resumes * CONTEXT_START
    assert plan.key(tokens[: length // 2]) == key[: length // 2]
    for segment in plan.segments:
        assert list(plan.segment_key(tokens, segment)) == [*tokens[: plan.origin], *tokens[slice(*segment)]]


@given(plans(), st.integers(1, 60))
def test_permuting_and_restoring_are_inverse(drawn: tuple[Plan, int], budget: int) -> None:
    plan, length = drawn
    start = plan.stretch(0, length, budget)
    stop = plan.stretch(start, length, budget)
    stretch = Stretch(start, stop, plan.moved(start, stop), plan.computed(start, stop))
    tokens = array("q", range(length))
    permuted = stretch.permuted(tokens)
    assert sorted(permuted) == list(tokens)
    row = torch.tensor(permuted, dtype=torch.int32)
    restore(row, stretch)
    assert row.tolist() == list(tokens)
    runs = Runs.of([3, start + len(stretch.moved)], [8, stop], {1: stretch})
    rows = [*range(3, 8), *stretch.rows.tolist()]
    assert runs.positions().tolist() == rows
    spans = zip(runs.requests, runs.starts, runs.stops, strict=True)
    assert [(index, at) for index, a, b in spans for at in range(a, b)] == [
        (int(i > 4), at) for i, at in enumerate(rows)
    ]
    starts, ends = runs_of(stretch.rows)
    assert (starts[1:] > ends[:-1]).all() and len(runs.starts) == 1 + len(starts), "as few runs as can be"


def test_separators_cut_segments_out_of_a_dialogue() -> None:
    sep, user, answer = 99, 7, 8
    turn = [user, 1, sep, 2, 2, sep, 3, sep, 4, answer, 5]
    assert split_at(turn[:2], sep) == ([user, 1], None)
    assert split_at(turn[:4], sep) == ([user, 1, 2], [])
    first = [user, 1, 2, 2, 3, 4, answer, 5]
    assert split_at(turn, sep, {user, answer}) == (first, [2, 4, 4, 5])
    again = [*turn, user, sep, 6, 6, sep, 1]
    # What stands between the documents of two turns has the marks of messages in it.
    assert split_at(again, sep, {user, answer}) == ([*first, user, 6, 6, 1], [2, 4, 4, 5, 9, 11])
    assert split_at(again, sep) == ([*first, user, 6, 6, 1], [2, 4, 4, 5, 5, 9, 9, 11])


def test_last_row_is_never_reused_and_empty_segments_vanish() -> None:
    params = {"redknot_mode": "segmented", "redknot_repair": "none", "redknot_segments": [0, 0, 2, 5, 5, 9]}
    assert make_plan(params, 9) == Plan(((2, 5), (5, 8)), parse_repair("none"))
    assert make_plan({**params, "redknot_segments": [8, 9]}, 9) is None
    assert make_plan(None, 9) is None
    # SGLang may have cut the prompt since its offsets were checked.
    assert make_plan(params, 4) == Plan(((2, 3),), parse_repair("none"))
    assert make_plan(params, 1) is None


def test_a_policy_that_selects_needs_all_segments_and_what_asks() -> None:
    tokens = list(range(100, 160))
    plan = Plan(((5, 15), (15, 35), (40, 47)), parse_repair("question:2"), after_lead=True)
    found = [(path.span, list(path.key), path.origin, path.whole) for path in plan.paths(tokens, 0)]
    lead = tokens[:5]
    assert found == [
        ((5, 15), lead + tokens[5:15], 5, False),
        ((15, 35), lead + tokens[15:35], 5, False),
        ((40, 47), lead + tokens[40:47], 5, False),
        ((47, 60), lead + tokens[47:], 5, True),
    ]
    assert plan.most_tokens(60) == 60 - 7 and replace(plan, repair=parse_repair("none")).most_tokens(60) == 60
    assert plan.left([0, 2], 60).tolist() == [*range(15), *range(35, 60)]
    assert plan.left([0, 1, 2], 60).tolist() == list(range(60)) and not plan.undecided(0)
