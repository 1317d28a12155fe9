# SPDX-License-Identifier: Apache-2.0
"""Intervals, quantiles and overlaps, as tables show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a proportion by Wilson's score method (1927), which stays inside [0, 1] and holds near both ends.

    successes: number of successes.
    trials: number of trials.
    z: quantile of the normal distribution; the default gives 95 %.
    Raises ValueError unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion")
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends one bound is 0 or 1 exactly; rounding must not move it past.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return low, high


def paired_difference_interval(
    both: int, first_only: int, second_only: int, neither: int, z: float = Z_95
) -> tuple[float, float]:
    """Interval of the difference of two proportions measured on the same trials (Newcombe 1998, method 10).

    both: trials in which both succeeded.
    first_only: trials in which the first succeeded and the second did not.
    second_only: trials in which it was the other way round.
    neither: trials in which none succeeded.
    z: quantile of the normal distribution; the default gives 95 %.
    Returns the ends for first minus second, in [-1, 1]. It is made of Wilson's intervals of both and their correlation, so
    it has a width even if nothing differed. Raises ValueError for counts that are negative or all zero.
    """
    n = both + first_only + second_only + neither
    if min(both, first_only, second_only, neither) < 0 or n == 0:
        raise ValueError(f"{(both, first_only, second_only, neither)} are not the counts of a table")
    first, second = both + first_only, both + second_only
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, n, z), wilson_interval(second, n, z)
    p1, p2 = first / n, second / n
    spread = math.sqrt(first * (n - first) * second * (n - second))
    product: float = both * neither - first_only * second_only
    if product > 0:
        # Continuity correction of a positive correlation only, as published.
        product = max(product - n / 2, 0)
    phi = product / spread if spread else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = p1 - p2
    return difference - reach(p1 - low_1, high_2 - p2), difference + reach(high_1 - p1, p2 - low_2)


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile, interpolated linearly between neighbours.

    values: in any order.
    share: 0 to 1; 0.5 gives the median.
    Raises ValueError if there are no values or the share is another.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no {share} quantile of {len(values)} values")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def peak_overlap(spans: Iterable[tuple[float, float]]) -> int:
    """The largest number of spans [begin, end) that overlap at any moment."""
    edges = sorted(edge for begin, end in spans for edge in ((begin, 1), (end, -1)))
    # At equal times the closing edge sorts first, so touching spans do not count as overlapping.
    open_now = peak = 0
    for _, change in edges:
        open_now += change
        peak = max(peak, open_now)
    return peak
