# SPDX-License-Identifier: Apache-2.0
"""The shipped model: loads as stock Llama, answers, and was trained with the attention of its head map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.tasks import TASKS, make_conversation, make_example, messages, render, score
from eval.tasks.vocabulary import END, SEG, token_id
from eval.train.attention import Layout, make_attention, make_dense_attention
from eval.train.checkpoint import hf_config, load_weights, save_weights
from eval.train.data import ANSWER, REFERENCE, RETRIEVE, Mix, make_batch, training_rng
from eval.train.evaluate import exact_match
from eval.train.model import EmbeddedModel, ModelConfig, read_out, rope_table
from eval.train.optimizer import orthogonalize

MODEL = Path(__file__).parents[2] / "eval" / "model"
SMALL = ModelConfig(width=32, head_dim=16, ffn=32, vocab=64, window=16)


@pytest.fixture(scope="module")
def served() -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trained() -> EmbeddedModel:
    model = EmbeddedModel(ModelConfig())
    load_weights(model, MODEL / "model.safetensors")
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def test_files_fit_and_say_what_they_are() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 11 * 2**20
    assert json.loads((MODEL / "config.json").read_text()) == hf_config(ModelConfig())
    with safe_open(str(MODEL / "model.safetensors"), framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}
        assert "lm_head.weight" not in weights.keys()


def test_a_quarter_of_the_heads_is_global() -> None:
    c = ModelConfig()
    assert len(set(c.global_heads)) * 4 == c.layers * c.kv_heads
    assert all(sorted(c.global_in(i) + c.local_in(i)) == list(range(c.kv_heads)) for i in range(c.layers))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_answers_greedily(served: Any, tokenizer: Any, name: str) -> None:
    for seed in (0, 1):
        example = make_example(name, 256, seed)
        prompt = tokenizer(render(example), return_tensors="pt")["input_ids"]
        output = served.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
        assert output[-1] == token_id(END)
        assert score(example, tokenizer.decode(output))


def test_follows_a_conversation(served: Any, tokenizer: Any) -> None:
    conversation = make_conversation(400, 3, 1)
    said = [{"role": "system", "content": conversation.system}]
    for turn in conversation.turns:
        said.append({"role": "user", "content": turn.content(SEG)})
        prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        output = served.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        said.append({"role": "assistant", "content": tokenizer.decode(output, skip_special_tokens=True)})
        assert said[-1]["content"] == turn.answer


def test_chat_template_gives_the_completion_prompt(tokenizer: Any) -> None:
    for separator in ("", SEG):
        example = make_example("lookup", 400, 1)
        chat = tokenizer.apply_chat_template(messages(example, separator), add_generation_prompt=True, tokenize=False)
        assert chat == render(example, separator)
    # Encoding must add nothing of its own: the rendered text already holds every marker.
    assert tokenizer("Report").input_ids == [token_id("Report")]


def test_right_under_its_map_and_wrong_without_its_global_heads(trained: EmbeddedModel) -> None:
    kept = exact_match(trained, "lookup", 512, range(4), "mapped", torch.float32, 4096)
    blind = EmbeddedModel(replace(trained.config, global_heads=()))
    blind.load_state_dict(trained.state_dict())
    lost = exact_match(blind, "lookup", 512, range(4), "mapped", torch.float32, 4096)
    assert (kept, lost) == (1.0, 0.0)


def test_only_the_crossdoc_family_suffers_from_isolated_documents(trained: EmbeddedModel) -> None:
    isolated = {t: exact_match(trained, t, 320, range(4), "isolated", torch.float32, 2048) for t in TASKS}
    assert {t for t, share in isolated.items() if share < 1} == {t for t in TASKS if TASKS[t].causal_only}


def test_own_forward_equals_transformers(served: Any, trained: EmbeddedModel) -> None:
    tokens = torch.randint(0, 2048, (2, 200), generator=torch.Generator().manual_seed(0))
    cos, sin = (t.repeat(2, 1) for t in rope_table(trained.config, 200, "cpu"))
    with torch.no_grad():
        x = trained(tokens, cos, sin, make_attention(trained.config, Layout(mapped=False)), torch.float32)
        mine = read_out(trained.config, x, trained.norm, trained.embedding).view(2, 200, -1)
        theirs = served(tokens).logits
    assert (mine - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("split", "document"), [(0, 0), (64, 32), (96, 16), (96, 96)])
def test_fast_attention_equals_masked(mapped: bool, split: int, document: int) -> None:
    generator = torch.Generator().manual_seed(split + document)
    q, k, v, weight = (torch.randn(2, 128, h, 16, generator=generator).requires_grad_() for h in (8, 4, 4, 8))
    number = torch.zeros(2, 128, dtype=torch.long)
    if split:
        number[:, :split] = 1 + torch.arange(split) // document
    for layer in range(SMALL.layers):
        fast = make_attention(SMALL, Layout(mapped, split, document))(layer, q, k, v)
        masked = make_dense_attention(SMALL, mapped, number)(layer, q, k, v)
        torch.testing.assert_close(fast, masked, rtol=1e-4, atol=1e-5)
        pairs = (torch.autograd.grad((out * weight.detach()).sum(), (q, k, v)) for out in (fast, masked))
        for ours, reference in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isolated", [0.0, 1.0])
def test_batches_hold_what_they_promise(isolated: float) -> None:
    batch = make_batch(training_rng(0, 0), Mix(((512, 1.0),), isolated, copied=0.0), 4096, 128)
    assert batch.tokens.shape == batch.kinds.shape == (8, 513)
    assert (batch.split > 0) == (isolated > 0)
    if batch.split:
        assert batch.split % batch.document == 0
    for row in range(8):
        tokens, gold = batch.tokens[row], batch.gold[row]
        used = gold[gold[:, 2] > 0]
        assert len(used) and (used[:, 1] < used[:, 0]).all()
        for at, target, kind in used.tolist():
            assert tokens[target - 1] == tokens[at]
            if kind == RETRIEVE and isolated:
                assert at >= batch.split
            if kind != REFERENCE:
                assert batch.kinds[row, at + 1] == ANSWER


def test_weights_round_trip(tmp_path: Path) -> None:
    model, again = EmbeddedModel(SMALL), EmbeddedModel(SMALL)
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b)


def test_muon_step_is_near_orthogonal() -> None:
    step = orthogonalize(torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0)))
    assert ((torch.linalg.svdvals(step) - 1).abs() < 0.45).all()
