# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.measure.statistics import Z_95, paired_difference_interval, peak_overlap, quantile, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000), st.data())
def test_wilson_bounds_solve_the_score_equation(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    share = successes / trials
    bounds = wilson_interval(successes, trials)
    assert 0 <= bounds[0] <= share <= bounds[1] <= 1
    for bound in bounds:
        assert (share - bound) ** 2 == pytest.approx(Z_95**2 * bound * (1 - bound) / trials, abs=1e-12)


def test_paired_differences_have_the_published_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10, for counts 36, 12, 2, 0.
    assert paired_difference_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


counts = st.tuples(*[st.integers(0, 300)] * 4).filter(any)


@given(counts)
def test_paired_intervals_hold_the_difference_and_turn_with_the_sides(table: tuple[int, int, int, int]) -> None:
    both, first_only, second_only, neither = table
    low, high = paired_difference_interval(*table)
    difference = (first_only - second_only) / sum(table)
    assert -1 - 1e-9 <= low <= difference + 1e-12 and difference - 1e-12 <= high <= 1 + 1e-9
    turned = paired_difference_interval(both, second_only, first_only, neither)
    assert turned == pytest.approx((-high, -low), abs=1e-12)


@given(st.integers(1, 5000))
def test_equal_answers_say_no_more_than_their_number(n: int) -> None:
    low, high = paired_difference_interval(n, 0, 0, 0)
    assert high == pytest.approx(Z_95**2 / (n + Z_95**2)) and low == pytest.approx(-high)


@pytest.mark.parametrize("table", [(0, 0, 0, 0), (1, -1, 0, 0)])
def test_what_is_no_table_is_refused(table: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not the counts"):
        paired_difference_interval(*table)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, trials)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_quantile_refuses_no_values_and_bad_shares(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="quantile"):
        quantile(values, share)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=30))
def test_peak_overlap_counts_like_a_clock(spans: list[tuple[int, int]]) -> None:
    intervals = [(begin, begin + length) for begin, length in spans]
    by_clock = max((sum(b <= now < e for b, e in intervals) for now in range(41)), default=0)
    assert peak_overlap(intervals) == by_clock
