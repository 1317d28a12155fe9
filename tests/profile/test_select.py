# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of budgets, rankings and choices."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from redknot_sglang.errors import ProfileError
from redknot_sglang.heads import HeadMap
from redknot_sglang.profile.chart import draw_pareto
from redknot_sglang.profile.methods.controls import random_harm, reversed_harm
from redknot_sglang.profile.select import (
    ROUNDING,
    TIE,
    Point,
    Target,
    choose,
    fewest_global,
    grid,
    kv_share,
    most_global,
    pareto,
    ranking,
    within_budget,
)

SIZES = {"window": st.integers(1, 9000), "sink": st.integers(0, 200), "length": st.integers(1, 200_000)}


def point(method: str, kv: float, loss: float, window: int = 8) -> Point:
    return Point(method, window, 1, kv, loss, None, HeadMap.from_global_heads(1, 2, [(0, 0)], window, 1))


POINTS = st.lists(
    st.builds(point, st.sampled_from(["mass", "greedy", "random:1"]), st.floats(0, 1), st.floats(0, 9)), max_size=12
)


@given(target=st.floats(0.001, 1), num_heads=st.integers(1, 300), **SIZES)
def test_the_budget_is_used_and_not_exceeded(
    target: float, num_heads: int, window: int, sink: int, length: int
) -> None:
    found = most_global(target, num_heads, window, sink, length)

    def share(count: int) -> float:
        rho = count / num_heads
        return rho + (1 - rho) * min(1, (sink + window) / length)

    if found is None:
        assert share(0) > target - 1e-9
    else:
        assert kv_share(found, num_heads, window, sink, length) == pytest.approx(share(found))
        assert share(found) <= target + 1e-9
        if found < num_heads:
            assert share(found + 1) > target - 1e-9


@given(st.integers(1, 300), st.data())
def test_bisection_finds_the_edge(num_heads: int, data: st.DataObject) -> None:
    need = data.draw(st.integers(0, num_heads))
    assert fewest_global(lambda size: size >= need, num_heads) == need


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bisection_of_a_loss_that_jumps_still_ends_at_an_edge(fits: list[bool]) -> None:
    found = fewest_global(lambda size: fits[size], len(fits))
    # Behind the list all fits, before it nothing.
    assert [False, *fits, True][found : found + 2] == [False, True]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=6))
def test_ranking_is_by_harm_and_then_by_place(harm: list[list[float]]) -> None:
    order = ranking(harm)
    keys = [(-harm[layer][head], layer, head) for layer, head in order]
    assert keys == sorted(keys) and len(set(order)) == 3 * len(harm)


@given(POINTS, st.floats(0.01, 1), st.floats(0, 9))
def test_the_choice_keeps_to_its_target_and_is_best(points: list[Point], kv: float, limit: float) -> None:
    maps = [p for p in points if not p.is_control]
    small, good = [p for p in maps if p.kv <= kv + ROUNDING], [p for p in maps if p.loss <= limit]
    least = min((p.loss for p in small), default=0) + TIE
    for target, fit, key in (
        (Target(100, kv=kv), [p for p in small if p.loss <= least], lambda p: (-p.kv, p.loss)),
        (Target(100, max_loss=limit), good, lambda p: (p.kv, p.loss)),
    ):
        if not fit:
            with pytest.raises(ProfileError, match="no measured map keeps to the target"):
                choose(points, target, 0.0)
            continue
        taken = points[choose(points, target, 0.0)[0]]
        assert taken in fit and key(taken) == min(map(key, fit))


def test_equal_losses_take_what_the_budget_grants() -> None:
    found = [(0.1, 0.5), (0.3, 0.5 + TIE / 2), (0.4, 0.5 + 2 * TIE), (0.3, 0.5 + TIE / 4), (0.9, 0.0)]
    assert within_budget(found, 0.45) == 3
    assert within_budget(found, 0.2) == 0 and within_budget(found, 0.05) is None and within_budget(found, 1) == 4


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    front = [points[i] for i in pareto(points)]
    maps = [p for p in points if not p.is_control]
    for a, b in zip(front, front[1:], strict=False):
        assert a.kv <= b.kv and a.loss > b.loss
    for p in maps:
        assert any(f.kv <= p.kv and f.loss <= p.loss for f in front)
        beaten = any(q.kv <= p.kv and q.loss <= p.loss and (q.kv, q.loss) != (p.kv, p.loss) for q in maps)
        assert not (beaten and p in front)


@given(st.integers(1, 300), st.integers(1, 20))
def test_the_grid_goes_from_none_to_almost_all(num_heads: int, steps: int) -> None:
    sizes = grid(num_heads, steps)
    assert sizes[0] == 0 and sizes[-1] <= num_heads and sizes == sorted(set(sizes)) and len(sizes) <= steps


def test_controls() -> None:
    harm = random_harm(3, 4, 5)
    assert harm == random_harm(3, 4, 5) != random_harm(3, 4, 6)
    assert ranking(reversed_harm(harm)) == ranking(harm)[::-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either --target-kv or --max-loss"),
        ({"kv": 0.5, "max_loss": 0.1}, "give either --target-kv or --max-loss"),
        ({"kv": 0.0}, "--target-kv must be above 0 and at most 1"),
        ({"kv": 1.5}, "--target-kv must be above 0 and at most 1"),
        ({"kv": float("nan")}, "--target-kv must be above 0 and at most 1"),
        ({"max_loss": -1.0}, "--max-loss must be at least 0"),
        ({"max_loss": float("nan")}, "--max-loss must be at least 0"),
        ({"kv": 0.5, "at": 0}, "--at must be at least 1"),
    ],
)
def test_bad_targets(options: dict, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Target(**{"at": 10, **options})


@pytest.mark.parametrize("target", [Target(100, kv=0.4), Target(100, max_loss=0.01), Target(100, max_loss=0.0)])
def test_the_curve_is_drawn(target: Target) -> None:
    points = [point("dense", 1, 0.5), point("mass", 0.1, 3), point("mass", 0.3, 0.5), point("random:1", 0.3, 2)]
    first, second = (draw_pareto(points, [1, 2], chosen, 0.5, target) for chosen in (1, 2))
    image = Image.open(BytesIO(first))
    assert image.size == (1100, 640) and first != second
    # Nothing but dense: all losses are at the floor.
    assert Image.open(BytesIO(draw_pareto(points[:1], [0], 0, 0.5, target))).size == (1100, 640)
