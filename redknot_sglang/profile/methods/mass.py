# SPDX-License-Identifier: Apache-2.0
"""Attention mass outside sink + window: how much of a head's softmax lies where a local head would not look.

The evidence most head maps are made of, among them RedKnot's (arXiv 2606.06256); sink + window as in StreamingLLM (Xiao
et al., arXiv 2309.17453). A KV head serves several query heads and is judged by the one with the most mass outside;
their mean is recorded, too. Mass does not say what a head is good for: a head that looks everywhere and does nothing is
ranked first, and one that looks far back in a few rows only, but decides the answer there, is ranked last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redknot_sglang.profile.attention import mass_outside
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import Rows, dense
from redknot_sglang.profile.study import Evidence, Study, in_chunk, sample_rows


def mass(study: Study) -> Evidence:
    """Mean share over the sampled rows of an example, then over the examples. Takes one pass over each example."""
    found = study.each("mass", lambda _, example: example_mass(study, example).tolist(), _key(study))
    heads = torch.tensor(found, dtype=torch.float64).mean(0)  # [windows, layers, query heads]
    groups = heads.unflatten(2, (study.model.kv_heads, -1))
    per_window = {
        name: dict(zip(study.curve, values.tolist(), strict=True))
        for name, values in (("query", heads), ("largest", groups.amax(-1)), ("mean", groups.mean(-1)))
    }
    return Evidence(
        per_window["largest"],
        "share of the attention mass outside sink + window, of the query head with most of it",
        "RedKnot, arXiv 2606.06256; sink and window: StreamingLLM, arXiv 2309.17453",
        {
            name: {str(w): m for w, m in per_window[key].items()}
            for name, key in (("query_heads", "query"), ("mean", "mean"))
        },
    )


def example_mass(study: Study, example: Example) -> Tensor:
    """Mean share of one example: float64 [windows of the curve, layers, query heads]."""
    model = study.model
    positions = sample_rows(len(example.ids), study.rows).to(model.device)
    total = torch.zeros(len(study.curve), model.layers, model.q_heads, dtype=torch.float64, device=model.device)

    def attend(rows: Rows) -> Tensor:
        inside, q = in_chunk(positions, rows)
        if len(inside):
            total[:, rows.layer] += mass_outside(q, rows.k, inside, rows.scale, study.curve, study.sink).sum(-1)
        return dense(rows)

    x, tables = model.embed(example.ids)
    model.run(x, tables, attend)
    return total / len(positions)


def _key(study: Study) -> list[object]:
    return ["mass", study.curve, study.sink, study.rows]
