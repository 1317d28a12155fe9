# SPDX-License-Identifier: Apache-2.0
"""How evidence becomes a map: which heads are global, how many a budget of KV bytes allows, and which measured map is
taken.

*Harm* is a method's number for a head that says how much it needs the whole context. A map has one window and one sink,
because all local heads share one pool of slots (heads/head_map.py). So candidates are pairs of a window and a number of
global heads, those with the most harm, and the window is chosen for the whole map by what the map loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redknot_sglang.errors import ProfileError
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.profile.record import Matrix

Head = tuple[int, int]
# A map of just the share that a user wrote, say 0.1, must count as within it although both are rounded.
ROUNDING = 1e-9
# Losses that differ by less, in nats per token, count as equal: calibration data do not tell them apart. Of maps with
# equal losses the one that keeps most bytes is taken, since the budget allows them and they help where data showed nothing.
TIE = 1e-3


@dataclass(frozen=True)
class Target:
    """What the map must keep to: a share of bytes or a loss.

    at: tokens of the prefix whose bytes count.
    kv: share of stock's KV bytes that the map may keep, above 0 and at most 1, or None.
    max_loss: nats per token that it may lose against dense attention, or None. One of both is given.
    Raises ProfileError for other values.
    """

    at: int
    kv: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if (self.kv is None) == (self.max_loss is None):
            raise ProfileError("give either --target-kv or --max-loss, and not both")
        if self.at < 1:
            raise ProfileError(f"--at must be at least 1, got {self.at}")
        if self.kv is not None and not 0 < self.kv <= 1:
            raise ProfileError(f"--target-kv must be above 0 and at most 1, got {self.kv}")
        if self.max_loss is not None and not self.max_loss >= 0:  # NaN, too
            raise ProfileError(f"--max-loss must be at least 0, got {self.max_loss}")


@dataclass(frozen=True)
class Point:
    """A map that was measured.

    method: the method that ranked its heads, `random:SEED` or `reverse:METHOD` for a control, `dense` if all are
        global.
    window: in tokens.
    sink: in tokens.
    kv: share of stock's KV bytes at `Target.at` tokens.
    loss: mean loss in nats per token.
    exact: share of examples that were answered exactly, or None without answers.
    head_map: the map.
    """

    method: str
    window: int
    sink: int
    kv: float
    loss: float
    exact: float | None
    head_map: HeadMap

    @property
    def num_global(self) -> int:
        """Global heads in all layers."""
        return sum(map(sum, self.head_map.is_global))

    @property
    def is_control(self) -> bool:
        """Whether it is there for comparison only."""
        return ":" in self.method

    def to_dict(self) -> dict[str, Any]:
        """The point as a profile has it, see `record.py`."""
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
    """All (layer, KV head) pairs, those with the most harm first, equal ones in ascending order.

    harm: [layers][KV heads].
    """
    heads = [(layer, head) for layer, row in enumerate(harm) for head in range(len(row))]
    return sorted(heads, key=lambda h: (-harm[h[0]][h[1]], h))


def kv_share(num_global: int, num_heads: int, window: int, sink: int, length: int) -> float:
    """Share of stock's KV bytes that a map keeps, 0 to 1: rho + (1 - rho) * min(1, (S + W) / length).

    num_global: global heads in all layers.
    num_heads: KV heads in all layers.
    window: W in tokens.
    sink: S in tokens.
    length: tokens of the prefix.
    """
    heads = [(0, head) for head in range(num_global)]
    return HeadMap.from_global_heads(1, num_heads, heads, window, sink).compression(length)


def most_global(target_kv: float, num_heads: int, window: int, sink: int, length: int) -> int | None:
    """The largest number of global heads that a budget allows; None if it is exceeded without any.

    target_kv: share of stock's KV bytes. The other parameters are those of `kv_share`.
    """
    within = (
        k for k in range(num_heads, -1, -1) if kv_share(k, num_heads, window, sink, length) <= target_kv + ROUNDING
    )
    return next(within, None)


def fewest_global(fits: Callable[[int], bool], num_heads: int) -> int:
    """By bisection, a number of global heads that fits while one less does not, or 0 if none is needed.

    fits: whether a number of global heads is enough; it measures that map. All heads are taken to be enough.
    num_heads: KV heads in all layers.
    Loss need not fall with every head that turns global, so a smaller number may fit, too.
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
    """Which map to take under a budget: of those whose loss is within TIE of the least, the one with the most bytes.

    found: share of KV bytes and loss of each map.
    kv: the budget, a share.
    Returns an index into `found`, or None if no map is within the budget.
    """
    fit = [(share, loss, i) for i, (share, loss) in enumerate(found) if share <= kv + ROUNDING]
    limit = min((loss for _, loss, _ in fit), default=0.0) + TIE
    return min(((-share, loss, i) for share, loss, i in fit if loss <= limit), default=(0, 0, None))[2]


def choose(points: Sequence[Point], target: Target, dense_loss: float) -> tuple[int, str]:
    """Which measured map to take: under a budget `within_budget`, under a limit of loss the one with the fewest bytes.

    points: all measured maps; controls are not taken.
    target: what the map must keep to.
    dense_loss: nats per token with all heads global.
    Returns its index and a sentence that says why. Raises ProfileError if no map keeps to the target.
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
    """Indices of the maps that no other one beats in both bytes and loss, by ascending bytes; controls are left out."""
    front: list[int] = []
    order = sorted((p.kv, p.loss, i) for i, p in enumerate(points) if not p.is_control)
    for _, loss, index in order:
        if not front or loss < points[front[-1]].loss:
            front.append(index)
    return front


def grid(num_heads: int, steps: int) -> list[int]:
    """About `steps` numbers of global heads between 0 and `num_heads`, closer together where few are global."""
    shares: Iterable[float] = ((i / steps) ** 1.5 for i in range(steps))
    return sorted({round(share * num_heads) for share in shares})
