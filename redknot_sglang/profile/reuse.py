# SPDX-License-Identifier: Apache-2.0
"""Reuse sensitivity: how much it matters, head by head, that documents were computed alone and not in their context.

In segmented mode a document's K and V come from a pass over the document alone, K turned to the true position (the
definition is eval/segmented.py). Rotation is relative, so a pass over the document at its true positions gives the same
K and V. For each head, the rows outside the documents read such K and V in this one head of this one layer, while all
else is exact. This is the deviation that CacheBlend repairs row by row (Yao et al., arXiv 2405.16444). Nothing is
repaired here, and all heads are global: a local head reads only the last rows of a document, and suffers less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redknot_sglang.profile.attention import full, grouped, rows_attend
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import Attend, Rows, dense
from redknot_sglang.profile.record import Matrix
from redknot_sglang.profile.study import Study, sample_rows

LEVELS = ("none", "output", "loss")


def reuse_sensitivity(study: Study, level: str) -> dict[str, Matrix | None] | None:
    """The `reuse` of a profile (see `record.py`), over the examples that have documents; None if there are none.

    study: model, examples and sizes.
    level: `none`; `output`, two passes over each example; or `loss`, which takes as much again as ablation at one
        window.
    """
    if level == "none" or not any(example.segments for example in study.data.examples):
        return None
    with_loss = level == "loss"
    found = study.each(
        "reuse",
        lambda _, example: _measure(study, example, with_loss) if example.segments else None,
        ["reuse", with_loss, study.rows],
    )
    outputs, losses = zip(*(row for row in found if row is not None), strict=True)
    mean = torch.tensor(outputs, dtype=torch.float64).mean(0)
    rise = study.matrix(torch.tensor(losses, dtype=torch.float64).mean(0)) if with_loss else None
    return {"output": study.matrix(mean.flatten()), "loss": rise}


def _measure(study: Study, example: Example, with_loss: bool) -> tuple[list[list[float]], list[float]]:
    """Relative change of the layer's output, [layers][KV heads], and the rise of the loss for each head in order."""
    model, length = study.model, len(example.ids)
    x, tables = model.embed(example.ids)
    alone = x.clone()
    outside = torch.ones(length, dtype=torch.bool, device=model.device)
    outside[: example.segments[0][0]] = False  # nothing of a document is behind these
    for a, b in example.segments:
        outside[a:b] = False
    rows = outside.nonzero()[:, 0]
    rows = rows[sample_rows(len(rows), study.rows).to(rows.device)] if len(rows) else rows
    change = torch.zeros(model.layers, model.kv_heads, dtype=torch.float64, device=model.device)
    size = torch.zeros(model.layers, 1, dtype=torch.float64, device=model.device)
    losses = []
    loss = study.objective.loss
    before = loss(model, model.run(x.clone(), tables, dense), example)[0] if with_loss else 0.0
    for layer in range(model.layers):
        isolated = []
        for a, b in example.segments:
            k, v = model.run_layer(layer, alone[a:b], (tables[0][a:b], tables[1][a:b]), dense)
            isolated.append((a, b, k, v))
        if with_loss:
            for head in range(model.kv_heads):
                y = x.clone()
                model.run_layer(layer, y, tables, _one_head(isolated, outside, head))
                model.run(y, tables, dense, first=layer + 1)
                losses.append(loss(model, y, example)[0] - before)
        model.run_layer(layer, x, tables, _compare(study, isolated, rows, change, size))
    return (change / size.clamp(min=1e-300)).sqrt().tolist(), losses


Isolated = list[tuple[int, int, Tensor, Tensor]]
"""For each segment [a, b) its start and end, and its K and V in one layer, each [H, b - a, D]."""


def _compare(study: Study, isolated: Isolated, positions: Tensor, change: Tensor, size: Tensor) -> Attend:
    """Dense attention that adds to `change` and `size` what isolated documents do to the rows at `positions`."""
    model = study.model

    def attend(rows: Rows) -> Tensor:
        end = rows.begin + rows.q.shape[1]
        inside = positions[(positions >= rows.begin) & (positions < end)]
        if len(inside):
            q = rows.q[:, inside - rows.begin]
            k, v = _replaced(rows.k, rows.v, isolated)
            exact = rows_attend(q, rows.k, rows.v, inside, rows.scale, (), 0)[0]
            reused = rows_attend(q, k, v, inside, rows.scale, (), 0)[0]
            size[rows.layer] += model.project(rows.layer, exact).square().sum(dtype=torch.float64)
            change[rows.layer] += model.squared_by_head(rows.layer, exact - reused)
        return dense(rows)

    return attend


def _one_head(isolated: Isolated, outside: Tensor, head: int) -> Attend:
    """Dense attention, but in one head the rows `outside` (bool [T]) read the isolated documents."""

    def attend(rows: Rows) -> Tensor:
        out = dense(rows)
        k, v = _replaced(rows.k, rows.v, isolated)
        q = grouped(rows.q, len(rows.k))[head]
        reused = full(q, k[head : head + 1], v[head : head + 1], rows.scale)
        there = outside[rows.begin : rows.begin + rows.q.shape[1]]
        group = slice(head * len(q), (head + 1) * len(q))
        out[group] = torch.where(there[:, None], reused, out[group])
        return out

    return attend


def _replaced(k: Tensor, v: Tensor, isolated: Isolated) -> tuple[Tensor, Tensor]:
    """Copies of k and v [H, end, D] with the documents' rows as isolation left them."""
    k, v = k.clone(), v.clone()
    for a, b, own_k, own_v in isolated:
        stop = min(b, k.shape[1])
        if a < stop:
            k[:, a:stop], v[:, a:stop] = own_k[:, : stop - a], own_v[:, : stop - a]
    return k, v
