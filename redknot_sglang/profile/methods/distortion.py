# SPDX-License-Identifier: Apache-2.0
"""Output distortion: how much a layer's attention output changes when one of its KV heads sees sink + window.

Unlike mass it weighs what a head reads by its values (why that matters: Guo et al., arXiv 2406.12335) and by the output
projection, so that heads of a layer are on one scale. It sees one layer: what later layers do with the change, and
whether the answer needs it, it does not know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redknot_sglang.profile.attention import rows_attend
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import Rows, dense
from redknot_sglang.profile.study import Evidence, Study, in_chunk, sample_rows


def distortion(study: Study) -> Evidence:
    """Mean over the examples of ||change|| / ||output||, norms over the sampled rows. Takes one pass over each example."""
    what = ["distortion", study.curve, study.sink, study.rows]
    found = study.each("distortion", lambda _, example: example_distortion(study, example).tolist(), what)
    mean = torch.tensor(found, dtype=torch.float64).mean(0)
    return Evidence(
        dict(zip(study.curve, mean.tolist(), strict=True)),
        "relative change of the layer's attention output (after o_proj) with the head windowed",
        "own; why values count: arXiv 2406.12335",
    )


def example_distortion(study: Study, example: Example) -> Tensor:
    """Relative change in one example: float64 [windows of the curve, layers, KV heads]."""
    model = study.model
    positions = sample_rows(len(example.ids), study.rows).to(model.device)
    change = torch.zeros(len(study.curve), model.layers, model.kv_heads, dtype=torch.float64, device=model.device)
    size = torch.zeros(model.layers, 1, dtype=torch.float64, device=model.device)

    def attend(rows: Rows) -> Tensor:
        inside, q = in_chunk(positions, rows)
        if len(inside):
            # Both in float32: in the model's dtype the rounding of two kernels would pass for a change.
            *near, far = rows_attend(q, rows.k, rows.v, inside, rows.scale, study.curve, study.sink)
            size[rows.layer] += model.project(rows.layer, far).square().sum(dtype=torch.float64)
            for number, output in enumerate(near):
                change[number, rows.layer] += model.squared_by_head(rows.layer, far - output)
        return dense(rows)

    x, tables = model.embed(example.ids)
    model.run(x, tables, attend)
    # A layer without output has nothing to distort.
    return (change / size.clamp(min=1e-300)).sqrt()
