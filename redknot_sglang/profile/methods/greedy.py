# SPDX-License-Identifier: Apache-2.0
"""Greedy by task loss: heads turn local in order of measured harm, each judged beside those already local.

Backward elimination with lazy re-evaluation (Minoux 1978): the harm of a head is measured again, under the heads that are
local by then, only when it comes up among the least harmful. Several heads may turn local in a round; they do so
together only if the loss they cause together is that of each alone. So heads that stand in for each other are found,
which single ablation cannot see. Pairs that help only together are not found.
"""

from __future__ import annotations

from math import ceil

from redknot_sglang.profile.methods.ablation import ablation
from redknot_sglang.profile.study import Evidence, Head, Study

# Rounds at most: with 288 heads five turn local in one.
ROUNDS = 64
# Nats by which heads together may exceed the sum of their own rises and still count as independent.
SLACK = 0.01


def greedy(study: Study) -> Evidence:
    """Harm is a head's place in the order in which heads turn local, highest for the last. `ablation` gives the first order."""
    single = ablation(study)
    harm, paths = {}, {}
    for window in study.windows:
        path, left = _path(study, window, {h: single.harm[window][h[0]][h[1]] for h in study.heads})
        order = [head for head, _ in path] + sorted(left, key=lambda head: (left[head], head))
        place = {head: float(number) for number, head in enumerate(order)}
        harm[window] = study.matrix([place[head] for head in study.heads])
        paths[str(window)] = [{"layer": layer, "head": head, "loss": loss} for (layer, head), loss in path]
    return Evidence(
        harm,
        "place in the order in which heads turned local, the last highest",
        "backward elimination with lazy re-evaluation, Minoux 1978",
        {"path": paths},
    )


def _path(study: Study, window: int, rises: dict[Head, float]) -> tuple[list[tuple[Head, float]], dict[Head, float]]:
    """The heads in the order in which they turn local, each with the loss when it has; and the last measured rise of the
    loss for each head that stays global.

    rises: rise of the loss, in nats per token, when a head alone is local.
    """
    left, path = dict(rises), list[tuple[Head, float]]()
    local: list[Head] = []
    before, _ = study.loss((), window)
    step = ceil(len(study.heads) / ROUNDS)
    while len(local) < study.goal:
        take = min(step, study.goal - len(local))
        ahead = sorted(left, key=lambda head: (left[head], head))[: take + max(3, take)]
        label = f"greedy, window {window}, {len(local)} of {study.goal} local"
        found = study.rises(label, local, ahead, window)
        left.update({head: loss - before for head, loss in found.items()})
        best = sorted(ahead, key=lambda head: (left[head], head))
        together = found[best[0]]
        while take > 1:
            together, _ = study.loss([*local, *best[:take]], window)
            if together - before <= sum(left[head] for head in best[:take]) + SLACK:
                break
            take //= 2
        together = found[best[0]] if take == 1 else together
        local += best[:take]
        path += [(head, together) for head in best[:take]]
        before = together
        for head in best[:take]:
            del left[head]
    return path, left
