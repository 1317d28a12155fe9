# SPDX-License-Identifier: Apache-2.0
"""The model that is profiled is the embedded model of eval/, dense and under its head map; its data are eval's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eval import tasks
from eval.bench_repair import make_prompt
from eval.segmented import SegmentedModel
from eval.train.attention import Layout, make_attention
from eval.train.checkpoint import load_weights
from eval.train.evaluate import encoded_example
from eval.train.model import EmbeddedModel, ModelConfig, read_out, rope_table
from redknot_sglang.heads import load_head_map
from redknot_sglang.profile.data import Data, Example, task_data
from redknot_sglang.profile.model import ProfiledModel, dense, load_model
from redknot_sglang.profile.objective import GivenAnswers
from redknot_sglang.profile.study import Study, under_map
from redknot_sglang.work_file import WorkFile

MODEL = Path(__file__).parents[2] / "eval" / "model"


@pytest.fixture(scope="module")
def profiled() -> ProfiledModel:
    return load_model(MODEL, "cpu", "float32", "auto", 200)[0]


def test_logits_equal_those_of_the_training_code(profiled: ProfiledModel) -> None:
    ids, prompt, _ = encoded_example("multivalue", 500, 7)
    reference = EmbeddedModel(ModelConfig())
    load_weights(reference, MODEL / "model.safetensors")
    attention = make_attention(reference.config, Layout(mapped=False))
    cos, sin = rope_table(reference.config, len(ids), "cpu")
    with torch.no_grad():
        hidden = reference(torch.tensor([ids]), cos, sin, attention, torch.float32)
        expected = read_out(reference.config, hidden, reference.norm, reference.embedding)
    x, tables = profiled.embed(ids)
    found = profiled.logits(profiled.run(x, tables, dense))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert GivenAnswers().loss(profiled, x, Example(tuple(ids), prompt, True))[1]


def test_logits_under_the_head_map_equal_those_of_the_definition(profiled: ProfiledModel) -> None:
    prompt = make_prompt(("crossdoc", 400, 3))
    reference = SegmentedModel(MODEL, MODEL / "head_map.json").prefill(
        prompt.ids, prompt.segments, "dense", answer=prompt.answer
    )
    head_map = load_head_map(MODEL / "head_map.json")
    local = [(layer, head) for layer in range(6) for head in head_map.local_heads(layer)]
    ids = [*prompt.ids, *prompt.answer]
    x, tables = profiled.embed(ids)
    profiled.run(x, tables, under_map(local, head_map.window, head_map.sink))
    found = profiled.logits(x[-len(prompt.answer) - 1 :])
    torch.testing.assert_close(found, reference.logits, rtol=0, atol=2e-3)
    study = Study(
        profiled, Data("tasks", "", (Example(tuple(ids), len(prompt.ids), True),)), WorkFile(None, 0), head_map.sink,
        (head_map.window,), (head_map.window,), 8, 6,
    )  # fmt: skip
    wanted = torch.tensor(prompt.answer)
    expected = torch.nn.functional.cross_entropy(reference.logits[:-1], wanted)
    assert study.loss(local, head_map.window) == (pytest.approx(float(expected), abs=1e-5), 1.0)


def test_generated_data_are_those_of_the_tasks() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    data = task_data(tasks, ["lookup", "crossdoc"], [300, 400], 2, 50, tokenizer)
    assert data.describe() | {"sha256": "", "tokens": {}} == {
        "source": "tasks", "name": "lookup,crossdoc", "sha256": "", "examples": 8, "with_answers": 8,
        "with_documents": 8, "tokens": {}, "lengths": [300, 400], "seeds": [50, 51],
    }  # fmt: skip
    order = [(name, length, seed) for seed in (50, 51) for length in (300, 400) for name in ("lookup", "crossdoc")]
    for example, (name, length, seed) in zip(data.examples, order, strict=True):
        ids, first, sizes = encoded_example(name, length, seed)
        assert (list(example.ids), example.first) == (ids, first)
        assert [b - a for a, b in example.segments] == sizes
        made = tasks.make_example(name, length, seed)
        assert [tokenizer.decode(ids[a:b]) for a, b in example.segments] == made.documents
    again = task_data(tasks, ["lookup", "crossdoc"], [300, 400], 2, 50, tokenizer)
    other = task_data(tasks, ["lookup", "crossdoc"], [300, 400], 2, 52, tokenizer)
    assert data.sha256 == again.sha256 != other.sha256
