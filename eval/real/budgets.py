# SPDX-License-Identifier: Apache-2.0
"""Maps of one calibration at several budgets of KV bytes, and controls of the same size."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redknot_sglang.heads import HeadMap
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.methods.controls import random_harm, reversed_harm
from redknot_sglang.profile.record import Matrix
from redknot_sglang.profile.select import kv_share, most_global, ranking
from redknot_sglang.profile.study import Evidence, Study


@dataclass(frozen=True)
class Candidate:
    """A map to be asked.

    name: as `own 0.5`, `random:0 0.5`, `reverse 0.5`.
    budget: the share of KV bytes that it had to keep to.
    kv: the share that it keeps.
    method: that ranked its heads; of a control its kind.
    loss: on the calibration data under the target that chose it, None for a control.
    tried: loss of the map of each method and window, by `method window`, of which the least is `loss`.
    """

    name: str
    budget: float
    kv: float
    method: str
    loss: float | None
    head_map: HeadMap
    tried: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For a result file; the map's classes as in a map's file."""
        return {
            "name": self.name, "budget": self.budget, "kv": self.kv, "method": self.method, "loss": self.loss,
            "tried": dict(self.tried),
            "global": sum(map(sum, self.head_map.is_global)), "window": self.head_map.window, "sink": self.head_map.sink,
            "layers": self.head_map.to_dict()["layers"],
        }  # fmt: skip


def measure(study: Study, methods: Sequence[str], budgets: Sequence[float], at: int) -> dict[str, Evidence]:
    """What each method finds. at: tokens of the prefix whose bytes count. Raises ValueError for a budget below all windows."""
    study = study.with_goal(len(study.heads) - min(size for _, size in sizes(study, min(budgets), at)))
    found = {}
    for name in methods:
        begin = time.monotonic()
        found[name] = METHODS[name](study)
        print(f"{study.objective.name}, {name}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
    return found


def sizes(study: Study, budget: float, at: int) -> list[tuple[int, int]]:
    """Pairs of a window and the most global heads that the budget allows. Raises ValueError if no window fits."""
    every = ((w, most_global(budget, len(study.heads), w, study.sink, at)) for w in study.windows)
    found = [(window, size) for window, size in every if size is not None]
    if not found:
        raise ValueError(f"sink and window alone take more than {budget:g} of the KV bytes at {at} tokens")
    return found


def best(study: Study, evidence: Mapping[str, Evidence], budget: float, at: int) -> Candidate:
    """Of all methods and windows the map of that budget with the least loss on the calibration data."""
    found = []
    for window, size in sizes(study, budget, at):
        for name, of_method in evidence.items():
            order = ranking(of_method.harm[window])
            found.append((study.loss(order[size:], window)[0], name, window, size))
    loss, name, window, size = min(found)
    tried = {f"{method} {window}": loss for loss, method, window, _ in found}
    harm = evidence[name].harm[window]
    label = f"{study.objective.name} {budget:g}"
    return replace(_candidate(study, label, budget, name, loss, harm, window, size, at), tried=tried)


def controls(study: Study, evidence: Mapping[str, Evidence], like: Candidate, seed: int, at: int) -> list[Candidate]:
    """A random map and the reverse of the ranking that `like` has, both with its window and size."""
    window, size = like.head_map.window, sum(map(sum, like.head_map.is_global))
    shape = (study.model.layers, study.model.kv_heads)
    drawn = (f"random:{seed}", random_harm(*shape, seed))
    turned = (f"reverse:{like.method}", reversed_harm(evidence[like.method].harm[window]))
    return [
        _candidate(
            study, f"{method.partition(':')[0]} {like.budget:g}", like.budget, method, None, harm, window, size, at
        )
        for method, harm in (drawn, turned)
    ]


def _candidate(
    study: Study,
    name: str,
    budget: float,
    method: str,
    loss: float | None,
    harm: Matrix,
    window: int,
    size: int,
    at: int,
) -> Candidate:
    shape = (study.model.layers, study.model.kv_heads)
    head_map = HeadMap.from_global_heads(*shape, ranking(harm)[:size], window, study.sink)
    kv = kv_share(size, len(study.heads), window, study.sink, at)
    return Candidate(name, budget, kv, method, loss, head_map)
