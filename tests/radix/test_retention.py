# SPDX-License-Identifier: Apache-2.0
"""The pure part of the eviction policy: whole numbers, equal decisions, and decay as its definition says."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.radix import retention, trials, uses, victims
from redknot_sglang.radix.retention import Retention, block_size, blocks_of
from redknot_sglang.radix.trials import Trial, Trials
from redknot_sglang.radix.uses import FRACTION, Clock, Uses, rank

EVENTS = st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=60)


@given(EVENTS, st.integers(1, 100))
def test_a_count_is_the_sum_of_its_uses_each_halved_once_an_epoch(
    events: list[tuple[bool, int]], half_life: int
) -> None:
    clock, counter, counted = Clock(half_life), Uses(), list[tuple[int, int]]()
    for used, tokens in events:
        clock.advance(tokens)
        if used:
            clock.add(counter)
            counted.append((clock.epoch, clock.weight()))
        assert 1 << FRACTION <= clock.weight() < 2 << FRACTION
        # From scratch: exact fractions over the power of two that all of them divide.
        whole = sum(weight << epoch for epoch, weight in counted)
        assert clock.decayed(counter) == whole >> clock.epoch
        assert counter.count >= 0


@given(EVENTS, st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_the_order_of_untouched_counters_never_changes(events: list[tuple[bool, int]], half_lives: list[int]) -> None:
    clock, counters = Clock(half_lives[0]), list[Uses]()
    for number, (again, tokens) in enumerate(events):
        clock.advance(tokens)
        counter = counters[number % len(counters)] if again and counters else clock.started(0)
        before = rank(counter, 3)
        clock.add(counter)
        assert rank(counter, 3) > before
        counters += [counter] * (not any(counter is known for known in counters))
    order = sorted(range(len(counters)), key=lambda index: rank(counters[index], 3))
    for half_life in half_lives:
        clock.pace(half_life)
        clock.advance(7)
        values = [clock.decayed(counters[index]) for index in order]
        assert values == sorted(values)


def test_worth_counts_like_uses() -> None:
    clock = Clock(100)
    once, twice = clock.started(0), clock.started(0)
    for counter in (twice, once, twice):
        clock.add(counter)
    assert rank(once, 1) < rank(twice, 1) < rank(once, 3)
    # A use one half-life later is worth two of before.
    clock.advance(100)
    late = clock.started(0)
    clock.add(late)
    assert rank(late, 1)[0] == rank(twice, 1)[0]


def test_what_is_computed_deeper_is_worth_more() -> None:
    kept = Retention(1000, lambda position: 10 + position)
    first, second = kept.started(), kept.started()
    kept.use([(second, True), (first, True)])
    assert kept.global_rank(second, 0) < kept.global_rank(first, 0) < kept.global_rank(second, 5)
    # A tail is worth all that is computed again without it, over the rows that it takes.
    assert kept.local_rank(first, 0, 10, 0) < kept.local_rank(second, 0, 10, 90) < kept.local_rank(first, 0, 10, 90)


def test_what_was_never_used_goes_before_all_that_was_however_long_ago() -> None:
    clock = Clock(10)
    used, fresh, later = clock.started(0), clock.started(0), Uses()
    clock.add(used)
    clock.advance(1000)
    touched, later = clock.started(0), clock.started(0)
    clock.touch(fresh)
    assert rank(touched, 5) < rank(later, 1) < rank(fresh, 9) < rank(used, 1)


def _own(number: int) -> list[tuple[int, int]]:
    """A segmented request's own path: all begin alike."""
    return [(-1, 30), *((1000 * number + i, 10) for i in range(7))]


def test_own_paths_count_up_to_where_they_went_on_until_such_paths_come_again() -> None:
    kept = Retention(4000, lambda position: 1)
    assert kept.admit(_own(0)) is None, "a path that is no segmented request's own counts"
    kept = Retention(4000, lambda position: 1)
    for number in range(30):
        assert kept.admit(_own(number), 30 if number else 0) == (30 if number else 0)
        assert kept.known(-1) > 0 or not number
        assert kept.known(1000 * number + 3) == 0, "its blocks are no less unused in the simulated caches"
    # One in ten conversations goes on; then one in five.
    for number in range(30, 60):
        kept.admit(_own(number), 30)
        if number % 10 == 0:
            assert kept.admit([*_own(number), (1000 * number + 9, 10)], 100) == 100
    counted = []
    for number in range(60, 200):
        kept.admit(_own(number), 30)
        if number % 2:
            counted.append(kept.admit([*_own(number), (1000 * number + 9, 10)], 100))
    assert counted[0] == 100 and counted[-1] is None
    # Documents alone again: it is forgotten.
    for number in range(200, 4000):
        last = kept.admit(_own(number), 30)
    assert last == 30


def test_a_prompt_that_all_begin_with_does_not_make_own_paths_count() -> None:
    kept = Retention(4000, lambda position: 1)
    for number in range(100):
        long_lead = [(-1, 300), (number, 100)]
        assert kept.admit(long_lead, 300) == 300


def _traffic(seed: int, requests: int) -> list[list[tuple[int, int]]]:
    rng, paths = random.Random(seed), []
    for _ in range(requests):
        number = min(rng.randrange(40), rng.randrange(40))
        paths.append([(100 * number + i, 8) for i in range(1 + number % 5)])
    return paths


def test_two_that_are_told_the_same_decide_alike() -> None:
    pair = [Trials(200, lambda position: 1 + position) for _ in range(2)]
    kept = [Retention(200, lambda position: 1 + position) for _ in range(2)]
    for path in _traffic(1, 400):
        for each, other in zip(pair, kept, strict=True):
            each.admit(path)
            other.admit(path)
        one, two = ([[name for name, entry in t._entries.items() if entry.here] for t in each.trials] for each in pair)
        assert one == two
        assert pair[0].trials.index(pair[0].best) == pair[1].trials.index(pair[1].best)
        assert [k.known(path[0][0]) for k in kept][0] == kept[1].known(path[0][0])


@pytest.mark.parametrize("half_life", trials.HALF_LIVES)
def test_a_trial_holds_what_fits_and_remembers_no_more_than_it_says(half_life: tuple[int, int]) -> None:
    trial = Trial(half_life, 200, lambda position: 1)
    for path in _traffic(2, 400):
        trial.admit(path)
        here = [entry for entry in trial._entries.values() if entry.here]
        assert trial.held == sum(entry.tokens for entry in here) <= 200
        gone = [entry for entry in trial._entries.values() if not entry.here]
        assert sum(entry.tokens for entry in gone) <= trials._GHOSTS * 200


def test_the_shortest_half_life_is_nearly_the_order_of_last_use() -> None:
    trial = Trial(trials.HALF_LIVES[0], 80, lambda position: 1)
    for name in range(10):
        trial.admit([(name, 8)])
    for _ in range(3):
        trial.admit([(0, 8)])
    for name in range(20, 29):
        trial.admit([(name, 8)])
    assert [name for name, entry in trial._entries.items() if entry.here] == [0, *range(20, 29)]


def test_a_block_that_comes_back_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "HALF_LIVES", ((100, 1),))
    kept = Retention(160, lambda position: 1)
    for _ in range(5):
        kept.admit([(1, 16)])
    for name in range(2, 20):
        kept.admit([(name, 16)])
    assert kept.known(1) > 0 and kept.known(99) == 0


def test_names_of_blocks_depend_on_all_before_and_on_the_namespace() -> None:
    one, two = blocks_of([1] * 40, "", 16), blocks_of([2] + [1] * 39, "", 16)
    assert [tokens for _, tokens in one] == [16, 16, 8]
    assert not {name for name, _ in one} & {name for name, _ in two}
    assert not {name for name, _ in one} & {name for name, _ in blocks_of([1] * 40, "other", 16)}
    assert blocks_of([1] * 20, "", 16)[0] == one[0] and blocks_of([1] * 20, "", 16)[1] != one[1]
    assert [block_size(tokens) for tokens in (100, 200_000, 2_000_000)] == [16, 64, 512]


def test_there_are_no_floats_and_no_clocks() -> None:
    for module in (retention, trials, uses, victims):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), module.__name__
            assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), module.__name__
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"time", "random", "math", "datetime"} & set(names), module.__name__
