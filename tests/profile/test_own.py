# SPDX-License-Identifier: Apache-2.0
"""Maps by the model's own behaviour: what it says by itself, and how far a map leads it away from that."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from redknot_sglang.errors import DataError
from redknot_sglang.heads import ModelInfo
from redknot_sglang.profile.data import Data, Example, read_text_file
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.model import LOGIT_ROWS
from redknot_sglang.profile.objective import TARGETS, GivenAnswers, OwnBehaviour, divergence, make_objective
from redknot_sglang.profile.own import end_tokens, greedy_answer, own_study, prompt_of
from redknot_sglang.profile.reuse import reuse_sensitivity
from redknot_sglang.profile.run import Plan, profile
from redknot_sglang.profile.select import Target, ranking
from redknot_sglang.profile.study import Study, under_map
from redknot_sglang.work_file import WorkFile
from tests.profile.known_heads import FILLERS, GLOBAL, WINDOW, known_example, known_study
from tests.profile.small_models import CLASSES, VOCABULARY, naive_forward, small_study
from tests.profile.test_retrieval import question

MODEL = Path(__file__).parents[2] / "eval" / "model"
TOKENS = 3


def prompts_only(count: int = 6) -> Study:
    """A study of the model with known heads whose examples have no answers."""
    study = known_study()
    examples = tuple(Example(prompt_of(known_example(seed, 96)), 1) for seed in range(count))
    return replace(study, data=replace(study.data, examples=examples), objective=OwnBehaviour())


@pytest.fixture(scope="module")
def own() -> Study:
    return own_study(prompts_only(), TOKENS)


def test_the_model_says_the_answers_that_nobody_gave(own: Study) -> None:
    for seed, example in enumerate(own.data.examples):
        known = known_example(seed, 96)
        assert example.ids[: example.first + 1] == known.ids and example.first == known.first
        assert example.first + 1 <= len(example.ids) <= example.first + TOKENS
    assert own.data.describe()["with_answers"] == 0


def test_dense_attention_is_no_way_from_itself(own: Study) -> None:
    assert own.loss((), WINDOW) == (0.0, 1.0)
    local = [head for head in own.heads if head not in GLOBAL]
    loss, exact = own.loss(local, WINDOW)
    assert loss < 1e-4 and exact == 1
    for head in GLOBAL:
        loss, exact = own.loss([*local, head], WINDOW)
        assert loss > 0.3 and exact is not None and exact <= 0.5


@pytest.mark.parametrize("name", ["gates", "ablation", "greedy"])
def test_heads_that_matter_are_found_without_answers(name: str, own: Study) -> None:
    found = METHODS[name](own)
    assert sorted(ranking(found.harm[WINDOW])[: len(GLOBAL)]) == GLOBAL
    if name == "ablation":
        assert found.unit.startswith("divergence from dense attention's own answers")


def test_answers_that_the_model_does_not_give_mislead_the_loss_and_not_its_own_behaviour() -> None:
    """The data's answers are tokens of the filler: the heads that find what the model says only stand in their way."""
    examples = []
    for seed in range(4):
        right = known_example(seed, 96)
        examples.append(replace(right, ids=(*right.ids[:-1], FILLERS[seed])))
    told = replace(known_study(), data=Data("jsonl", "wrong", tuple(examples)))
    by_loss = METHODS["ablation"](told).harm[WINDOW]
    assert all(by_loss[layer][head] < 0 for layer, head in GLOBAL)
    own = replace(told, objective=OwnBehaviour(), work=WorkFile(None, 0))
    by_own = METHODS["ablation"](own_study(own, TOKENS)).harm[WINDOW]
    assert sorted(ranking(by_own)[: len(GLOBAL)]) == GLOBAL


@pytest.mark.parametrize("kind", CLASSES)
def test_own_answers_are_those_of_a_full_pass_for_each_token(kind: str) -> None:
    ids = tuple(random.Random(3).choices(range(VOCABULARY), k=21))
    study = small_study(kind, Example(ids, 1), chunk=8)
    expected = list(ids)
    for _ in range(6):
        expected.append(int(naive_forward(kind, expected)[-1].argmax()))
    answer = greedy_answer(study.model, ids, 6, ())
    assert answer == expected[21:]
    assert greedy_answer(study.model, ids, 6, {answer[2]}) == answer[: answer.index(answer[2]) + 1]


def test_end_tokens_are_those_of_the_model() -> None:
    model = prompts_only().model.model
    model.generation_config.eos_token_id = [3, 7]
    assert end_tokens(model) == {3, 7}
    model.generation_config.eos_token_id, model.config.eos_token_id = None, 5
    assert end_tokens(model) == {5}
    model.config.eos_token_id = None
    assert end_tokens(model) == set()


@pytest.mark.parametrize("rows", [5, LOGIT_ROWS + 3])
def test_the_loss_is_the_mean_divergence_over_the_whole_vocabulary(rows: int) -> None:
    ids = tuple(random.Random(1).choices(range(VOCABULARY), k=rows + 4))
    example = Example(ids, 4)
    study = replace(small_study("qwen2", example, chunk=64), objective=OwnBehaviour())
    local = study.heads[::2]
    loss, _ = study.loss(local, 4)
    x, tables = study.model.embed(ids)
    p, q = (
        study.model.logits(study.model.run(x.clone(), tables, under_map(heads, 4, study.sink)))[3:-1]
        .double()
        .log_softmax(-1)
        for heads in ((), local)
    )
    expected = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert loss == pytest.approx(float(expected), rel=1e-4) and loss > 0.01


def test_divergence_can_be_differentiated() -> None:
    wanted, found = torch.randn(3, 9), torch.randn(3, 9, requires_grad=True)
    divergence(wanted, found).sum().backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, found.detach().softmax(-1) - wanted.softmax(-1))
    assert torch.equal(divergence(wanted, wanted), torch.zeros(3))


def test_reuse_sensitivity_is_under_the_same_target() -> None:
    study = known_study()
    data = replace(study.data, examples=tuple(question(seed, "marker") for seed in range(3)))
    study = own_study(replace(study, data=data, objective=OwnBehaviour()), 2)
    found = reuse_sensitivity(study, "loss")
    assert found is not None and found["loss"] is not None
    # A divergence is never below 0, as a rise of the loss may be.
    assert min(value for row in found["loss"] for value in row) > -1e-7


def test_the_record_holds_the_evidence_of_every_head() -> None:
    study = known_study()
    examples = tuple(question(seed, kind) for seed in range(3) for kind in ("marker", "key"))
    study = replace(study, data=Data("jsonl", "d", examples), objective=OwnBehaviour(), windows=(8,), curve=(8,))
    own = own_study(study, 2)
    plan = Plan(Target(48, kv=0.6), ("ablation",), "output", 1, _MODEL, ModelInfo(model_type="llama"), 2, 2)
    head_map, record, _ = profile(own, plan)
    assert record["target"] == {"kv": 0.6, "max_loss": None, "at": 48, "loss": "own"}
    assert record["settings"]["own_tokens"] == 2 and record["dense"] == {"loss": 0.0, "exact": 1.0}
    assert head_map.provenance["target"]["loss"] == "own"
    shape = [3, 3]
    assert [len(row) for row in record["methods"]["ablation"]["harm"]["8"]] == shape
    assert [len(row) for row in record["reuse"]["output"]] == shape
    assert [len(row) for row in record["retrieval"]["score"]] == [6, 6] and record["data"]["with_answers"] == 6
    given = replace(study, objective=GivenAnswers(), work=WorkFile(None, 0))
    _, told, _ = profile(given, plan)
    assert told["target"]["loss"] == "answers" and told["settings"]["own_tokens"] is None
    assert told["retrieval"]["score"] == record["retrieval"]["score"]


_MODEL = {"name": "known", "config_sha256": "0" * 64, "load_format": "auto"}


def test_what_was_said_is_kept(tmp_path: Path) -> None:
    first = WorkFile(tmp_path / "w", "base")
    said = own_study(replace(prompts_only(2), work=first), TOKENS).data
    again = WorkFile(tmp_path / "w", "base")
    assert own_study(replace(prompts_only(2), work=again), TOKENS).data == said
    assert (first.measured, again.measured) == (2, 0)


def test_plain_text_is_its_own_continuation(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    file = tmp_path / "notes.txt"
    file.write_text("Report kram:\nblue dog runs\n" * 40)
    whole = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
    before = tokenizer("")["input_ids"]
    data = read_text_file(file, (50, 64), 3, tokenizer)
    assert (data.source, data.name, data.lengths) == ("text", "notes.txt", (50, 64))
    assert [len(e.ids) for e in data.examples] == [50] * 3 + [64] * 3
    assert list(data.examples[0].ids[len(before) :]) == whole[: 50 - len(before)]
    assert list(data.examples[2].ids[len(before) :]) == whole[len(before) - 50 :]
    assert all(e.first == 1 and not e.has_answer for e in data.examples)
    found = own_study(replace(small_study("llama", data.examples[0], 64), data=data), 8).data
    assert [(e.ids, e.first) for e in found.examples] == [(e.ids, len(e.ids) // 2) for e in data.examples]
    with pytest.raises(DataError, match="which make no piece of 100000"):
        read_text_file(file, (100000,), 1, tokenizer)
    with pytest.raises(DataError, match="cannot be read"):
        read_text_file(tmp_path / "absent.txt", (50,), 1, tokenizer)


def test_targets_by_name() -> None:
    assert [make_objective(name).name for name in TARGETS] == list(TARGETS)
