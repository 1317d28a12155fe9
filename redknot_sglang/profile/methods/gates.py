# SPDX-License-Identifier: Apache-2.0
"""Gates: one number per KV head mixes its full and its windowed output, and is optimised on the model's own outputs.

DuoAttention (Xiao et al., arXiv 2410.10819, section 2.2): attention is alpha * full + (1 - alpha) * windowed, all weights but
the gates are frozen, gates start at 1, and the loss is the squared difference of the last hidden states to the full
model's, at the answer's tokens, plus an L1 term that pushes every gate down. Here the difference is relative to the
full model's norm, so that the weight of the L1 term, over the mean gate, means the same for every model. All heads are
judged at once, under each other's changes; what is compared is the hidden state, not the answer.

Under the target `own` the loss is that target's, KL(dense || gated), in place of the squared difference: gates then are
found by what maps are judged by. At most `LOGIT_ROWS` rows of an example, evenly spaced, are compared.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redknot_sglang.errors import ProfileError
from redknot_sglang.profile.attention import full, grouped, windowed
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import LOGIT_ROWS, dense
from redknot_sglang.profile.objective import OWN, divergence, predicting
from redknot_sglang.profile.study import Evidence, Study, sample_rows


def gates(study: Study) -> Evidence:
    """The gates after `Study.gate_steps` steps of Adam, each over one example.

    A layer's activations are computed again for its gradient, so those of one layer are held at a time. That still grows
    with the example: those longer than `Study.gate_tokens` are left out. Raises ProfileError if none is left.
    """
    short = [example for example in study.data.examples if len(example.ids) <= study.gate_tokens]
    if not short:
        raise ProfileError(f"gates: all examples are longer than {study.gate_tokens} tokens; raise --gate-tokens")
    settings = {
        "steps": study.gate_steps, "l1": study.gate_l1, "learning_rate": study.gate_rate, "tokens": study.gate_tokens,
    }  # fmt: skip
    found = {}
    for window in study.windows:
        what = ["gates", window, study.sink, settings, study.seed]
        found[window] = study.work.once(what, partial(_optimise, study, short, window))
    return Evidence(
        {window: study.matrix(torch.tensor(result["gates"]).flatten()) for window, result in found.items()},
        "gate between the windowed (0) and the full (1) output of the head",
        "DuoAttention, arXiv 2410.10819",
        {**settings, "examples": len(short), "loss": {str(w): result["loss"] for w, result in found.items()}},
    )


def _optimise(study: Study, examples: list[Example], window: int) -> dict[str, Any]:
    model = study.model
    shape = (model.layers, model.kv_heads)
    alpha = torch.ones(shape, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([alpha], lr=study.gate_rate)
    wanted: dict[int, Tensor] = {}
    losses = []
    order = torch.Generator().manual_seed(study.seed)
    turn: list[int] = []
    for step in study.progress(f"gates, window {window}", range(study.gate_steps), study.gate_steps):
        turn = turn or torch.randperm(len(examples), generator=order).tolist()
        number = turn.pop()
        example = examples[number]
        if number not in wanted:
            x, tables = model.embed(example.ids)
            wanted[number] = _compared(study, model.run(x, tables, dense), example).clone()
        found = _compared(study, gated(study, example, alpha, window), example)
        loss = _distance(study, wanted[number], found)
        optimizer.zero_grad()
        (loss + study.gate_l1 * alpha.mean()).backward()
        optimizer.step()
        with torch.no_grad():
            alpha.clamp_(0, 1)
        if step % 10 == 0:
            losses.append(float(loss.detach()))
    return {"gates": alpha.tolist(), "loss": losses}


def gated(study: Study, example: Example, alpha: Tensor, window: int) -> Tensor:
    """Hidden states [T, d] after the last layer, when gates mix full and windowed attention.

    alpha: [layers, KV heads], the gates, in which the result can be differentiated.
    window: in tokens.
    """
    model = study.model
    x, tables = model.embed(example.ids)

    def layer_output(layer: int, rows: Tensor) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            far = grouped(full(q, k, v, scale), len(k))
            near = grouped(windowed(q, k, v, scale, window, study.sink), len(k))
            return torch.lerp(near, far, alpha[layer].to(near.dtype)[:, None, None, None]).flatten(0, 1)

        return model.apply_layer(layer, rows, tables, attend)

    for layer in range(model.layers):
        x = checkpoint(layer_output, layer, x, use_reentrant=False)
    return x


def _compared(study: Study, x: Tensor, example: Example) -> Tensor:
    """Of hidden states [T, d] those that are compared, [R, d]."""
    rows = predicting(x, example)
    if study.objective.name == OWN:
        rows = rows[sample_rows(len(rows), LOGIT_ROWS).to(rows.device)]
    return rows


def _distance(study: Study, wanted: Tensor, found: Tensor) -> Tensor:
    """The loss of hidden states [R, d] after the last layer."""
    model = study.model
    if study.objective.name == OWN:
        return divergence(model.logits(wanted), model.logits(found)).mean()
    before, after = (model.parts.norm(rows).float() for rows in (wanted, found))
    distance: Tensor = (after - before).square().sum() / before.square().sum()
    return distance
