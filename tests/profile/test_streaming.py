# SPDX-License-Identifier: Apache-2.0
"""What is measured in chunks and blocks equals plain softmax over all pairs of rows."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redknot_sglang.errors import ProfileError
from redknot_sglang.profile import attention
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.methods.distortion import example_distortion
from redknot_sglang.profile.methods.gates import gated
from redknot_sglang.profile.methods.mass import example_mass
from redknot_sglang.profile.model import dense
from redknot_sglang.profile.study import sample_rows, under_map
from tests.profile.small_models import (
    CLASSES,
    DIM,
    KV_HEADS,
    LAYERS,
    Q_HEADS,
    VOCABULARY,
    naive_forward,
    naive_weights,
    small_model,
    small_study,
)

GROUP = Q_HEADS // KV_HEADS
CASES = {
    "kind": st.sampled_from(CLASSES),
    "length": st.integers(2, 60),
    "chunk": st.integers(1, 64),
    "sink": st.integers(0, 5),
    "curve": st.sets(st.integers(1, 70), min_size=1, max_size=4).map(lambda found: tuple(sorted(found))),
    "rows": st.integers(1, 64),
    "block": st.integers(1, 64),
}


def prompt(length: int) -> Example:
    return Example(tuple(random.Random(length).choices(range(VOCABULARY), k=length)), 1)


@given(**CASES)
@settings(max_examples=40, deadline=None)
def test_mass_and_distortion_equal_the_naive_ones(
    kind: str, length: int, chunk: int, sink: int, curve: tuple[int, ...], rows: int, block: int
) -> None:
    example = prompt(length)
    at = sample_rows(length, rows)
    mass = torch.zeros(len(curve), LAYERS, Q_HEADS, dtype=torch.float64)
    change = torch.zeros(len(curve), LAYERS, KV_HEADS, dtype=torch.float64)

    def look(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        weights = naive_weights(q, k)
        project = small_model(kind).model.layers[layer].self_attn.o_proj.weight.double()
        output = (weights @ v)[:, at].transpose(0, 1).flatten(1) @ project.T
        position, key = torch.arange(length)[:, None], torch.arange(length)
        for number, window in enumerate(curve):
            outside = (key >= sink) & (key <= position - window)
            mass[number, layer] = (weights * outside).sum(-1)[:, at].mean(-1)
            near = naive_weights(q, k, window, sink) @ v
            for head in range(KV_HEADS):
                mixed = weights @ v
                mixed[head * GROUP : (head + 1) * GROUP] = near[head * GROUP : (head + 1) * GROUP]
                moved = mixed[:, at].transpose(0, 1).flatten(1) @ project.T
                change[number, layer, head] = (moved - output).norm() / output.norm()

    naive_forward(kind, list(example.ids), look)
    study = small_study(kind, example, chunk, sink=sink, curve=curve, rows=rows)
    with pytest.MonkeyPatch.context() as patch:
        # So small that a short prompt has several blocks of keys and of rows.
        patch.setattr(attention, "KEY_BLOCK", block)
        patch.setattr(attention, "MAX_SCORES", 40 * block)
        torch.testing.assert_close(example_mass(study, example), mass, rtol=0, atol=1e-5)
        torch.testing.assert_close(example_distortion(study, example), change, rtol=0, atol=1e-5)


@given(
    kind=CASES["kind"], length=CASES["length"], chunk=CASES["chunk"], sink=CASES["sink"],
    window=st.integers(1, 70), block=CASES["block"], bits=st.integers(0, 2 ** (LAYERS * KV_HEADS) - 1),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_logits_under_any_map_equal_the_naive_ones(
    kind: str, length: int, chunk: int, sink: int, window: int, block: int, bits: int
) -> None:
    example = prompt(length)
    study = small_study(kind, example, chunk, sink=sink)
    local = [head for number, head in enumerate(study.heads) if bits >> number & 1]

    def windowed(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = naive_weights(q, k) @ v
        near = naive_weights(q, k, window, sink) @ v
        for head in (head for at, head in local if at == layer):
            out[head * GROUP : (head + 1) * GROUP] = near[head * GROUP : (head + 1) * GROUP]
        return out

    expected = naive_forward(kind, list(example.ids), windowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "WINDOW_BLOCK", block)
        x, tables = study.model.embed(example.ids)
        found = study.model.logits(study.model.run(x, tables, under_map(local, window, sink)))
        gates = torch.ones(LAYERS, KV_HEADS)
        for layer, head in local:
            gates[layer, head] = 0
        mixed = study.model.logits(gated(study, example, gates, window))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_logits_equal_those_of_transformers(kind: str) -> None:
    example = prompt(50)
    model = small_model(kind)
    model.config._attn_implementation = "eager"
    try:
        expected = model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
    finally:
        model.config._attn_implementation = "redknot_profile"
    study = small_study(kind, example, chunk=17)
    x, tables = study.model.embed(example.ids)
    found = study.model.logits(study.model.run(x, tables, dense))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    loss, _ = study.objective.loss(study.model, x, example)
    reference = torch.nn.functional.cross_entropy(expected[:-1], torch.tensor(example.ids[1:]))
    assert loss == pytest.approx(float(reference), abs=1e-4)


@given(st.integers(1, 300), st.integers(1, 300))
def test_sampled_rows_are_spread_evenly(length: int, count: int) -> None:
    rows = sample_rows(length, count)
    steps = rows.diff()
    assert len(rows) == min(length, count) and int(rows[-1]) == length - 1 and int(rows[0]) >= 0
    if len(steps):
        assert int(steps.min()) > 0 and int(steps.max()) - int(steps.min()) <= 1
    assert int(rows[0]) <= length // len(rows)


def test_scale_is_that_of_the_model() -> None:
    assert small_model("llama").model.layers[0].self_attn.scaling == DIM**-0.5


def test_a_loss_that_is_no_number_is_refused() -> None:
    study = small_study("llama", prompt(20), 8)
    x, _ = study.model.embed(range(20))
    with pytest.raises(ProfileError, match="the loss of a prompt of 20 tokens is nan: try --dtype bfloat16 or float32"):
        study.objective.loss(study.model, x * torch.nan, prompt(20))
