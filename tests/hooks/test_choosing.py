# SPDX-License-Identifier: Apache-2.0
"""A forward that only chooses documents: how many layers run, and what comes out; tests/serving/test_question.py counts rows."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang.hooks.v0_5_17 import choosing
from redknot_sglang.hooks.v0_5_17.segments import _true_positions
from redknot_sglang.plan.request import RequestState
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.rotary import _MODELS

# Models of these modules keep and run the layers of all classes that documents can be moved for.
STACKS = {
    "llama": "LlamaModel",
    "mixtral": "MixtralModel",
    "qwen2": "Qwen2Model",
    "qwen2_moe": "Qwen2MoeModel",
}


def make_runner(is_choosing: bool) -> Any:
    backend = SimpleNamespace(choosing=is_choosing, facts=ModelFacts(asking_layers=3))
    return SimpleNamespace(attn_backend=backend, model=SimpleNamespace(model=SimpleNamespace(end_layer=7)))


@pytest.mark.parametrize(("is_choosing", "layers"), [(True, 3), (False, 7)])
def test_only_the_first_layers_run(is_choosing: bool, layers: int) -> None:
    runner = make_runner(is_choosing)
    seen: list[Any] = []

    def forward(runner: Any, batch: str, *, split: int) -> str:
        seen.append((runner.model.model.end_layer, choosing._choosing, batch, split))
        return "output"

    assert choosing._forward(forward, runner, "batch", split=1) == "output"
    assert seen == [(layers, is_choosing, "batch", 1)]
    assert runner.model.model.end_layer == 7 and not choosing._choosing


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    runner = make_runner(True)

    def forward(runner: Any) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        choosing._forward(forward, runner)
    assert runner.model.model.end_layer == 7 and not choosing._choosing


def test_other_attention_backends_run_all_layers() -> None:
    runner = SimpleNamespace(attn_backend=object())
    assert choosing._forward(lambda _: "all", runner) == "all"


def test_there_are_no_logits_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    processor, batch = SimpleNamespace(config=SimpleNamespace(vocab_size=11)), SimpleNamespace(batch_size=2)
    hidden = torch.full((5, 4), torch.nan)
    assert choosing._logits(lambda *args: args[3:], processor, None, hidden, "head", batch, "more") == (
        "head",
        batch,
        "more",
    )
    monkeypatch.setattr(choosing, "_choosing", True)
    output = choosing._logits(lambda *_: pytest.fail("computed"), processor, None, hidden, "head", batch)
    assert torch.equal(output.next_token_logits, torch.zeros(2, 11))


@pytest.mark.parametrize("module", STACKS)
def test_models_run_their_layers_up_to_end_layer(module: str) -> None:
    stack = getattr(import_module(f"sglang.srt.models.{module}"), STACKS[module])
    assert "range(self.start_layer, self.end_layer)" in inspect.getsource(inspect.unwrap(stack.forward))


def test_every_class_has_one_of_these_stacks() -> None:
    families = {"Llama": "llama", "Mistral": "llama", "Mixtral": "mixtral", "Qwen2": "qwen2", "Qwen3": "qwen3"}
    families |= {"Qwen2Moe": "qwen2_moe", "Qwen3Moe": "qwen3_moe"}
    for name in _MODELS:
        module = import_module(f"sglang.srt.models.{families[name.removesuffix('ForCausalLM')]}")
        stacks = [getattr(import_module(f"sglang.srt.models.{at}"), stack) for at, stack in STACKS.items()]
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__name__.endswith("Model")]
        assert any(issubclass(kind, tuple(stacks)) for kind in own), name


class Mode:
    """SGLang's ForwardMode of a prefill."""

    def is_extend(self) -> bool:
        return True

    def is_target_verify(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("asks", "layers", "ends_early", "deep"),
    [
        ((True, True), 3, True, [[], []]),
        ((True, False), 3, False, [[(4, 9)], []]),
        ((False, False), 3, False, [[], []]),
        # The last layer has a retrieval head.
        ((True, True), 0, False, [[], []]),
    ],
)
def test_a_batch_ends_early_if_all_its_requests_only_ask(
    asks: tuple[bool, bool], layers: int, ends_early: bool, deep: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a question beside others are noted: they go through all layers."""
    monkeypatch.setattr("redknot_sglang.active.config_of", lambda _: object())
    begun: list[bool] = []
    backend = SimpleNamespace(forwards=SimpleNamespace(begin=begun.append), facts=ModelFacts(asking_layers=layers))
    runner = SimpleNamespace(server_args=None, is_draft_worker=False, attn_backend=backend)
    reqs = [SimpleNamespace(redknot=RequestState(asks=one, whole=one)) for one in asks]
    batch = SimpleNamespace(forward_mode=Mode(), reqs=reqs, prefix_lens=[4, 0], extend_lens=[5, 6])
    _true_positions(SimpleNamespace(), None, batch, runner)
    assert backend.choosing is ends_early and begun == [ends_early]
    assert [req.redknot.deep for req in reqs] == deep
