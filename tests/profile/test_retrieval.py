# SPDX-License-Identifier: Apache-2.0
"""Retrieval heads: found where they are known, and the score against naive attention over separate passes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redknot_sglang.heads import HeadMap
from redknot_sglang.profile.data import Data, Example
from redknot_sglang.profile.retrieval import SKIPPED, document_wants, retrieval_heads
from redknot_sglang.profile.run import with_retrieval_heads
from tests.profile.known_heads import BOS, FILLERS, GROUP, KEYS, KV_HEADS, MARKERS, QUERY, VALUES, known_study
from tests.profile.small_models import CLASSES, DIM, Q_HEADS, VOCABULARY, naive_forward, small_study
from tests.profile.small_models import KV_HEADS as FEW

DOCUMENTS, LENGTH = 5, 9
# (layer, query head) of the heads that look for the marker and for what stood behind the key.
FINDS_MARKER, FINDS_VALUE = (0, 1 * GROUP), (1, 2 * GROUP)


def question(seed: int, kind: str) -> Example:
    """Documents of filler; one has the marker, or the key and its value; the question is the query token, or the key."""
    draw = random.Random(seed)
    marker, key, value = (draw.choice(words) for words in (MARKERS, KEYS, VALUES))
    documents = [draw.choices(FILLERS, k=LENGTH) for _ in range(DOCUMENTS)]
    holder, at = draw.randrange(DOCUMENTS), draw.randrange(SKIPPED, LENGTH - 1)
    documents[holder][at : at + 2] = [marker, draw.choice(FILLERS)] if kind == "marker" else [key, value]
    asked, answer = (QUERY, marker) if kind == "marker" else (key, value)
    ids = [BOS, *(token for document in documents for token in document), asked, answer]
    segments = tuple((1 + LENGTH * i, 1 + LENGTH * (i + 1)) for i in range(DOCUMENTS))
    return Example(tuple(ids), len(ids) - 1, True, segments, (holder,))


def found_for(kind: str, *more: Example) -> dict[str, Any]:
    examples = (*(question(seed, kind) for seed in range(8)), *more)
    found = retrieval_heads(replace(known_study(), data=Data("random", "known", examples)))
    assert found is not None
    return found


@pytest.mark.parametrize(("kind", "head"), [("marker", FINDS_MARKER), ("key", FINDS_VALUE)])
def test_the_known_head_is_found(kind: str, head: tuple[int, int]) -> None:
    found = found_for(kind)
    assert found["order"][0] == list(head)
    assert found["first"][head[0]][head[1]] == 1.0 and found["score"][head[0]][head[1]] == 1.0
    others = [score for i, row in enumerate(found["first"]) for j, score in enumerate(row) if (i, j) != head]
    assert max(others) < 0.9 and found["examples"] == 8 and found["documents"] == DOCUMENTS


def test_examples_that_say_nothing_are_left_out() -> None:
    one = question(0, "marker")
    nothing = [
        replace(one, holders=()), replace(one, holders=tuple(range(DOCUMENTS))), replace(one, has_answer=False),
        replace(one, first=one.segments[-1][1]), replace(one, segments=(), holders=()),
    ]  # fmt: skip
    assert found_for("marker", *nothing)["examples"] == 8
    assert retrieval_heads(replace(known_study(), data=Data("random", "known", tuple(nothing)))) is None


def test_the_map_gets_the_best_heads_that_are_global() -> None:
    found = found_for("marker")
    both = HeadMap.from_global_heads(2, KV_HEADS, [(0, 1), (1, 2)], 16, 1)
    assert with_retrieval_heads(both, found, 1, GROUP * KV_HEADS).retrieval == (FINDS_MARKER,)
    assert found["chosen"] == [list(FINDS_MARKER)]
    later = HeadMap.from_global_heads(2, KV_HEADS, [(1, 2)], 16, 1)
    assert {layer for layer, _ in with_retrieval_heads(later, found, 4, GROUP * KV_HEADS).retrieval} == {1}
    assert found["global"] == 2 and len(found["chosen"]) == 2


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("chunk", [3, 64])
def test_wants_equal_naive_attention_over_separate_passes(kind: str, chunk: int) -> None:
    draw = random.Random(5)
    segments = ((4, 15), (15, 21), (21, 34))
    example = Example(tuple(draw.choices(range(VOCABULARY), k=44)), 40, True, segments, (1,))
    lead, text, longest = list(example.ids[:4]), list(example.ids[34:40]), 13
    keys = [naive_pass(kind, lead + list(example.ids[a:b]), 0)[1] for a, b in segments]
    # The same rows a number of positions further on: rotation is relative, and the lead is no part of the score.
    asked = naive_pass(kind, lead + text, 0)[2]
    further = naive_turned(kind, asked, 4, 4 + longest)
    scores = []
    for (a, b), k in zip(segments, keys, strict=True):
        rows = k[:, :, 4 + min(SKIPPED, b - a - 1) :].repeat_interleave(Q_HEADS // FEW, 1)
        scores.append((further @ rows.transpose(2, 3)) * DIM**-0.5)
    weights = torch.cat(scores, -1).softmax(-1)
    sums = [part.sum(-1) for part in weights.split([score.shape[-1] for score in scores], -1)]
    expected = torch.stack(sums, -1).mean(2)
    got = document_wants(small_study(kind, example, chunk).model, example)
    assert torch.allclose(got.double(), expected, atol=1e-4)


def naive_pass(kind: str, ids: list[int], begin: int) -> tuple[None, Tensor, Tensor]:
    """K [layers, KV heads, T, D] and Q [layers, query heads, T, D] behind the lead of 4, rotated, of a pass."""
    keys, queries = [], []

    def keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        keys.append(k[:: Q_HEADS // FEW])
        queries.append(q[:, 4:])

    naive_forward(kind, ids, keep, begin=begin)
    return None, torch.stack(keys), torch.stack(queries)


def naive_turned(kind: str, q: Tensor, begin: int, there: int) -> Tensor:
    """Rotated queries [.., T, D] of positions `begin` on, moved to `there` on: pairs of dimensions as complex numbers."""
    from tests.profile.small_models import small_model

    config = small_model(kind).config
    theta = config.rope_parameters["rope_theta"]
    angles = (there - begin) * theta ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    left, right = q[..., : DIM // 2], q[..., DIM // 2 :]
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)
