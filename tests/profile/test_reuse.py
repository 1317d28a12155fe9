# SPDX-License-Identifier: Apache-2.0
"""Reuse sensitivity against naive attention that reads, in one head, K and V of separate forward passes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from redknot_sglang.profile.data import Example
from redknot_sglang.profile.reuse import reuse_sensitivity
from tests.profile.small_models import (
    CLASSES,
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
EXAMPLE = Example(
    tuple(random.Random(3).choices(range(VOCABULARY), k=44)), 40, True, segments=((4, 15), (15, 20), (23, 34))
)


def isolated(kind: str) -> list[tuple[Tensor, Tensor]]:
    """Of each layer K and V [Q, T, D], documents as they are alone, other rows 0."""
    kept = [(torch.zeros(Q_HEADS, 44, 8).double(), torch.zeros(Q_HEADS, 44, 8).double()) for _ in range(LAYERS)]
    for a, b in EXAMPLE.segments:

        def keep(layer: int, q: Tensor, k: Tensor, v: Tensor, a: int = a, b: int = b) -> None:
            kept[layer][0][:, a:b], kept[layer][1][:, a:b] = k, v

        # At its true positions: the test of `SegmentedModel` shows that relocation gives the same.
        naive_forward(kind, list(EXAMPLE.ids[a:b]), keep, begin=a)
    return kept


def outside() -> Tensor:
    rows = torch.zeros(44, dtype=torch.bool)
    rows[20:23] = rows[34:] = True  # what stands before the first document reads none
    return rows


@given(st.sampled_from(CLASSES), st.integers(1, 50))
@settings(max_examples=12, deadline=None)
def test_reuse_equals_the_naive_one(kind: str, chunk: int) -> None:
    kept, rows = isolated(kind), outside()
    inside = torch.zeros(44, dtype=torch.bool)
    for a, b in EXAMPLE.segments:
        inside[a:b] = True

    def mixed(layer: int, head: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        exact = naive_weights(q, k) @ v
        k, v = (torch.where(inside[:, None], old, new) for old, new in zip(kept[layer], (k, v), strict=True))
        reused = naive_weights(q, k) @ v
        group = torch.zeros(Q_HEADS, 1, 1, dtype=torch.bool)
        group[head * GROUP : (head + 1) * GROUP] = True
        return exact, torch.where(group & rows[:, None], reused, exact)

    output, loss = torch.zeros(LAYERS, KV_HEADS), torch.zeros(LAYERS, KV_HEADS)
    wanted = torch.tensor(EXAMPLE.ids[40:])
    before = cross_entropy(naive_forward(kind, list(EXAMPLE.ids))[39:-1], wanted)
    for layer in range(LAYERS):
        for head in range(KV_HEADS):

            def edit(at: int, q: Tensor, k: Tensor, v: Tensor, layer: int = layer, head: int = head) -> Tensor | None:
                if at != layer:
                    return None
                project = small_model(kind).model.layers[layer].self_attn.o_proj.weight.double()
                exact, reused = (x[:, rows].transpose(0, 1).flatten(1) @ project.T for x in mixed(at, head, q, k, v))
                output[layer, head] = (exact - reused).norm() / exact.norm()
                return mixed(at, head, q, k, v)[1]

            loss[layer, head] = cross_entropy(naive_forward(kind, list(EXAMPLE.ids), edit)[39:-1], wanted) - before
    found = reuse_sensitivity(small_study(kind, EXAMPLE, chunk), "loss")
    assert found is not None
    torch.testing.assert_close(torch.tensor(found["output"]), output, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found["loss"]), loss, rtol=0, atol=2e-4)


def test_the_first_layer_of_a_document_does_not_depend_on_context() -> None:
    found = reuse_sensitivity(small_study("llama", EXAMPLE, 16), "output")
    assert found is not None and found["output"] is not None and found["loss"] is None
    assert max(found["output"][0]) == 0 and min(found["output"][1]) > 1e-3


@pytest.mark.parametrize("level", ["none", "loss"])
def test_without_documents_there_is_nothing_to_reuse(level: str) -> None:
    assert reuse_sensitivity(small_study("llama", replace(EXAMPLE, segments=()), 16), level) is None


def test_a_document_at_the_end_is_read_by_nobody() -> None:
    example = Example(EXAMPLE.ids, 1, False, ((4, 44),))
    found = reuse_sensitivity(small_study("llama", example, 16), "output")
    assert found == {"output": [[0.0] * KV_HEADS] * LAYERS, "loss": None}
