# SPDX-License-Identifier: Apache-2.0
"""Greedy answers of many prompts together equal those of a full pass for each token, under any map."""

from __future__ import annotations

import random

import pytest
import torch

from eval.real.answers import Speaker
from redknot_sglang.heads import HeadMap
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.objective import OwnBehaviour
from redknot_sglang.profile.own import greedy_answer
from redknot_sglang.profile.study import under_map
from tests.profile.small_models import CLASSES, KV_HEADS, LAYERS, VOCABULARY, small_study

WINDOW, SINK, TOKENS = 5, 2, 7
PROMPTS = [tuple(random.Random(seed).choices(range(VOCABULARY), k=9 + 5 * seed)) for seed in range(5)]
MAPS = [[(0, 0), (1, 1), (2, 0)], [], [(layer, head) for layer in range(LAYERS) for head in range(KV_HEADS)]]


@pytest.mark.parametrize("kind", CLASSES)
def test_answers_and_divergence(kind: str) -> None:
    study = small_study(kind, Example(PROMPTS[0], 1), chunk=8)
    model = study.model
    speaker = Speaker(model, PROMPTS, TOKENS, (), batch=2)
    dense = [greedy_answer(model, prompt, TOKENS, ()) for prompt in PROMPTS]
    assert [list(said.answer) for said in speaker.dense] == dense
    assert all(said.divergence == 0 for said in speaker.dense)
    objective = OwnBehaviour()
    for heads in MAPS:
        head_map = HeadMap.from_global_heads(LAYERS, KV_HEADS, heads, WINDOW, SINK)
        attend = under_map([head for head in study.heads if head not in heads], WINDOW, SINK)
        for prompt, own, said in zip(PROMPTS, dense, speaker.under(head_map), strict=True):
            ids = list(prompt)
            for _ in range(TOKENS):
                x, tables = model.embed(ids)
                ids.append(int(model.logits(model.run(x, tables, attend)[-1:]).argmax()))
            assert list(said.answer) == ids[len(prompt) :]
            example = Example((*prompt, *own), len(prompt))
            x, tables = model.embed(example.ids)
            expected = objective.loss(model, model.run(x, tables, attend), example)[0]
            assert said.divergence == pytest.approx(expected, abs=1e-5)


def test_an_answer_ends_where_the_model_ends_it() -> None:
    model = small_study("llama", Example(PROMPTS[0], 1), chunk=64).model
    whole = [said.answer for said in Speaker(model, PROMPTS, TOKENS, (), batch=5).dense]
    ends = {whole[0][2]}
    cut = [said.answer for said in Speaker(model, PROMPTS, TOKENS, ends, batch=5).dense]
    for long, short in zip(whole, cut, strict=True):
        stop = next((at for at, token in enumerate(long) if token in ends), len(long) - 1)
        assert short == long[: stop + 1]
    assert any(len(short) < TOKENS for short in cut)


def test_prompts_of_other_lengths_do_not_matter() -> None:
    model = small_study("qwen3", Example(PROMPTS[0], 1), chunk=64).model
    together = Speaker(model, PROMPTS, TOKENS, (), batch=5).dense
    alone = [Speaker(model, [prompt], TOKENS, (), batch=1).dense[0] for prompt in PROMPTS]
    assert torch.tensor([s.answer for s in together]).equal(torch.tensor([s.answer for s in alone]))
