# SPDX-License-Identifier: Apache-2.0
"""Windowed ablation: the loss when one KV head, and no other, sees sink + window.

Michel et al. (arXiv 1905.10650) remove single heads and look at the task; here the head keeps its window. This measures
what matters, but one head at a time: of two heads that do the same work it finds neither, because each stands in for
the other. `greedy` looks at heads together.
"""

from __future__ import annotations

from redknot_sglang.profile.objective import ANSWERS, OWN
from redknot_sglang.profile.study import Evidence, Study

_UNITS = {OWN: "divergence from dense attention's own answers", ANSWERS: "rise of the loss"}


def ablation(study: Study) -> Evidence:
    """The rise of the mean loss when a head is windowed. Takes half a pass for each example, head and candidate window."""
    before, _ = study.loss((), study.windows[0])
    harm, losses = {}, {}
    for window in study.windows:
        rises = study.rises(f"ablation, window {window}", (), study.heads, window)
        losses[str(window)] = study.matrix([rises[head] for head in study.heads])
        harm[window] = study.matrix([rises[head] - before for head in study.heads])
    return Evidence(
        harm,
        f"{_UNITS[study.objective.name]}, nats per token, with the head windowed",
        "single-head ablation, arXiv 1905.10650, with a window in place of removal",
        {"loss": losses},
    )
