# SPDX-License-Identifier: Apache-2.0
"""From harm to a map: which heads stay global, how many a budget of KV bytes allows, which measured map is taken.

A map has one window and one sink, because all local heads share one pool of slots (heads/head_map.py); windows of single
heads would need a pool for each. So a candidate is (window, number of global heads), and the window is chosen among a
few by what the map loses, not head by head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redknot_sglang.errors import ProfileError
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.profile.record import Matrix

Head = tuple[int, int]
# A share that a user writes out is met by a map of just that share, whatever float made of both.
ROUNDING = 1e-9
# Nats per token that no calibration set tells apart. Of maps that lose the same the one that keeps most is taken: it has
# more room for what calibration did not show, and the bytes were granted.
TIE = 1e-3


@dataclass(frozen=True)
class Target:
    """What the map must keep to, at prefixes of `at` tokens: at most `kv` of stock's KV bytes, or at most `max_loss` more
    loss (nats per token) than dense; the other one is None."""

    at: int
    kv: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if (self.kv is None) == (self.max_loss is None):
            raise ProfileError("give either --target-kv or --max-loss")
        if self.at < 1:
            raise ProfileError(f"--at must be at least 1, got {self.at}")
        if self.kv is not None and not 0 < self.kv <= 1:
            raise ProfileError(f"--target-kv must be above 0 and at most 1, got {self.kv}")
        if self.max_loss is not None and not self.max_loss >= 0:  # NaN, too
            raise ProfileError(f"--max-loss must be at least 0, got {self.max_loss}")


@dataclass(frozen=True)
class Point:
    """A map that was measured. loss: nats per token; exact: share of examples answered exactly; kv: at `Target.at`."""

    method: str
    window: int
    sink: int
    kv: float
    loss: float
    exact: float | None
    head_map: HeadMap

    @property
    def num_global(self) -> int:
        return sum(map(sum, self.head_map.is_global))

    @property
    def is_control(self) -> bool:
        """Whether it is there for comparison only."""
        return ":" in self.method

    def to_dict(self) -> dict[str, Any]:
        """As in `record.py`."""
        return {
            "method": self.method,
            "window": self.window,
            "sink": self.sink,
            "global": self.num_global,
            "kv": self.kv,
            "loss": self.loss,
            "exact": self.exact,
            "layers": self.head_map.to_dict()["layers"],
        }


def ranking(harm: Matrix) -> list[Head]:
    """Heads, most harm first; equal ones by layer and head."""
    heads = [(layer, head) for layer, row in enumerate(harm) for head in range(len(row))]
    return sorted(heads, key=lambda h: (-harm[h[0]][h[1]], h))


def kv_share(num_global: int, num_heads: int, window: int, sink: int, length: int) -> float:
    """KV bytes of a prefix of `length` tokens over stock's: rho + (1 - rho) * min(1, (S + W) / length)."""
    heads = [(0, head) for head in range(num_global)]
    return HeadMap.from_global_heads(1, num_heads, heads, window, sink).compression(length)


def most_global(target_kv: float, num_heads: int, window: int, sink: int, length: int) -> int | None:
    """The largest number of global heads within the budget; None if even without any it is exceeded."""
    within = (
        k for k in range(num_heads, -1, -1) if kv_share(k, num_heads, window, sink, length) <= target_kv + ROUNDING
    )
    return next(within, None)


def fewest_global(fits: Callable[[int], bool], num_heads: int) -> int:
    """By bisection, a number of global heads that fits while one less does not, or 0 if none is needed.

    `fits(num_heads)` is taken for granted. Loss need not fall with every head that turns global, so there may be a
    smaller number that fits, too; what is returned was measured.
    """
    low, high = -1, num_heads
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def within_budget(found: Sequence[tuple[float, float]], kv: float) -> int | None:
    """Index of the (KV share, loss) to take under a budget: of those within `TIE` of the least loss that with most bytes,
    of these that with the least loss. None if nothing is within the budget."""
    fit = [(share, loss, i) for i, (share, loss) in enumerate(found) if share <= kv + ROUNDING]
    limit = min((loss for _, loss, _ in fit), default=0.0) + TIE
    return min(((-share, loss, i) for share, loss, i in fit if loss <= limit), default=(0, 0, None))[2]


def choose(points: Sequence[Point], target: Target, dense_loss: float) -> tuple[int, str]:
    """Index of the point to take, no control, and why. Under a budget `within_budget`; under a loss the fewest bytes.

    Raises ProfileError if no point keeps to the target.
    """
    maps = [i for i, point in enumerate(points) if not point.is_control]
    pairs = [(points[i].kv, points[i].loss) for i in maps]
    if target.kv is not None:
        taken = within_budget(pairs, target.kv)
        reason = (
            f"the least loss of the measured maps with at most {target.kv:.3g} of the KV bytes at {target.at} tokens; "
            f"of losses within {TIE:g} nats the most bytes"
        )
    else:
        assert target.max_loss is not None
        limit = dense_loss + target.max_loss
        taken = min(((kv, loss, i) for i, (kv, loss) in enumerate(pairs) if loss <= limit), default=(0, 0, None))[2]
        reason = (
            f"the fewest KV bytes at {target.at} tokens of the measured maps within {target.max_loss:.3g} nats of dense"
        )
    if taken is None:
        raise ProfileError(
            "no measured map keeps to the target: raise --target-kv, or give smaller --windows or --sink"
        )
    return maps[taken], reason


def pareto(points: Sequence[Point]) -> list[int]:
    """Indices of the points, without controls, that no other beats in bytes and loss; ascending bytes, falling loss."""
    front: list[int] = []
    order = sorted((p.kv, p.loss, i) for i, p in enumerate(points) if not p.is_control)
    for _, loss, index in order:
        if not front or loss < points[front[-1]].loss:
            front.append(index)
    return front


def grid(num_heads: int, steps: int) -> list[int]:
    """About `steps` numbers of global heads, from 0 up to one less than all, denser where few are global."""
    shares: Iterable[float] = ((i / steps) ** 1.5 for i in range(steps))
    return sorted({round(share * num_heads) for share in shares})
