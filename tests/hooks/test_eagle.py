# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding with a draft model: its attention on a CPU, its KV of reused documents, its weights, and what is refused."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.draft_utils import DraftBackendFactory

from redknot_sglang.draft_attention import DraftSteps
from redknot_sglang.errors import RedKnotError
from redknot_sglang.hooks.v0_5_17 import eagle, registries, segments
from redknot_sglang.hooks.v0_5_17.refusals import ARGUMENTS, refuse_unsupported
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.request import mark_batch
from redknot_sglang.pool.relocation import RelocationQueue

# In 0.5.18 they are refused.
pytestmark = pytest.mark.pinned

HOOKS = {seam.target.rsplit(".", 1)[1]: seam.hook for seam in eagle.SEAMS}


def arguments(with_redknot: bool = True, **changes: Any) -> Any:
    """Server arguments as far as these hooks look at them."""
    given = {
        "device": "cpu",
        "dp_size": 1,
        "speculative_algorithm": "EAGLE3",
        "speculative_eagle_topk": 1,
        "speculative_draft_attention_backend": None,
        "speculative_adaptive": False,
        "speculative_draft_window_size": None,
        "speculative_use_rejection_sampling": False,
        "enable_multi_layer_eagle": False,
        "enable_memory_saver": False,
        "enable_hierarchical_cache": False,
        "hicache_storage_backend": None,
        "tp_size": 1,
        "disaggregation_mode": "null",
        **changes,
    }
    return SimpleNamespace(**given, **({"_redknot": object()} if with_redknot else {}))


def factory(server_args: Any, steps: int = 4) -> Any:
    pool = SimpleNamespace(req_to_token_pool=None, token_to_kv_pool=None, device="cpu", server_args=server_args)
    return SimpleNamespace(
        server_args=server_args,
        speculative_num_steps=steps,
        draft_model_runner=SimpleNamespace(**vars(pool), is_draft_worker=True),
    )


def test_a_draft_model_has_attention_on_a_cpu() -> None:
    steps, extend = HOOKS["create_decode_backend"], HOOKS["create_draft_extend_backend"]

    def theirs(asked: Any) -> str:
        return "SGLang's"

    found = steps(theirs, factory(arguments()))
    assert isinstance(found, DraftSteps) and len(found.attn_backends) == 3
    assert type(extend(theirs, factory(arguments()))).__name__ == "TorchNativeAttnBackend"
    for other in (arguments(device="cuda"), arguments(with_redknot=False)):
        assert steps(theirs, factory(other)) == extend(theirs, factory(other)) == "SGLang's"
    # One step needs none, as SGLang knows.
    original = inspect.unwrap(DraftBackendFactory.create_decode_backend)
    assert steps(original, factory(arguments(), steps=1)) is None


def test_a_draft_model_is_attended_to_by_sglang_itself() -> None:
    build = registries._dispatching(lambda runner: "SGLang's")
    assert build(SimpleNamespace(server_args=arguments(), is_draft_worker=True)) == "SGLang's"
    assert build(SimpleNamespace(server_args=arguments(with_redknot=False), is_draft_worker=False)) == "SGLang's"


class RotaryEmbedding(torch.nn.Module):
    """SGLang's, as far as it is looked at."""

    is_neox_style = True

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(8), torch.tensor([1.0, 0.1]))
        self.cos_sin_cache = torch.cat([angles.cos(), angles.sin()], -1)


def test_documents_bring_the_draft_models_kv() -> None:
    queue, buffers = RelocationQueue(), object()
    worker = SimpleNamespace(
        server_args=arguments(),
        draft_runner=SimpleNamespace(token_to_kv_pool=buffers, model=RotaryEmbedding()),
        token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: SimpleNamespace(relocations=queue)),
    )
    hook = HOOKS["alloc_memory_pool"]
    hook(None, worker)
    follower = queue.follower
    assert follower is not None and follower.pool is buffers and isinstance(follower.rotation, Rotation)
    queue.follower, worker.server_args = None, arguments(with_redknot=False)
    hook(None, worker)
    assert queue.follower is None


def test_a_draft_model_that_cannot_be_turned_ends_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    worker = SimpleNamespace(
        server_args=arguments(),
        draft_runner=SimpleNamespace(token_to_kv_pool=None, model=torch.nn.Linear(1, 1)),
        token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: None),
    )
    with pytest.raises(SystemExit):
        HOOKS["alloc_memory_pool"](None, worker)
    assert "of the draft model: the model has no rotary embedding that RedKnot knows" in capsys.readouterr().err


def drafter(width: int, named: list[int] | None, **changes: Any) -> Any:
    """A draft model that reads `width` numbers, for a model of 12 layers whose hidden states have 8."""
    config = SimpleNamespace(eagle_config=None if named is None else {"eagle_aux_hidden_state_layer_ids": named})
    body = SimpleNamespace(fc=torch.nn.Linear(width, 1))
    return SimpleNamespace(
        server_args=arguments(**changes),
        target_worker=SimpleNamespace(model_config=SimpleNamespace(num_hidden_layers=12, hidden_size=8)),
        draft_runner=SimpleNamespace(
            model=SimpleNamespace(model=body), model_config=SimpleNamespace(hf_config=config), token_to_kv_pool=None
        ),
    )


@pytest.mark.parametrize(
    ("width", "named", "changes"),
    [
        (24, [1, 5, 8], {}),
        (24, None, {}),
        (32, [1, 3, 5, 8], {}),
        (16, None, {"speculative_algorithm": "EAGLE"}),
    ],
)
def test_a_draft_model_for_this_model(width: int, named: list[int] | None, changes: dict[str, Any]) -> None:
    eagle._check_fits(drafter(width, named, **changes))


@pytest.mark.parametrize(
    ("width", "named", "changes", "why"),
    [
        # Of a deeper model, whose last layer that is read this one does not have; of a wider one; of one read elsewhere.
        (
            24,
            [1, 5, 20],
            {},
            "it reads 24 numbers a token, and this model has 16 for it, the outputs of its layers 1, 5;",
        ),
        (24, [1, 5, 11], {}, "this model has 16 for it"),
        (48, [1, 5, 8], {}, "it reads 48 numbers a token, and this model has 24 for it"),
        (24, [1, 5, 5], {}, "this model has 16 for it"),
        (24, None, {"speculative_algorithm": "EAGLE"}, "this model has 16 for it, its last hidden state and a token's"),
    ],
)
def test_a_draft_model_for_another_model_ends_the_start(
    width: int, named: list[int] | None, changes: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        HOOKS["alloc_memory_pool"](None, drafter(width, named, **changes))
    said = capsys.readouterr().err
    assert (
        why in said and "--speculative-draft-model-path must be a draft model that was trained for this model" in said
    )


def test_what_of_a_model_sglang_hands_to_a_draft_is_what_is_counted() -> None:
    """SGLang's own model, told to capture for a draft."""
    from sglang.srt.models.llama import LlamaForCausalLM

    tell = inspect.unwrap(LlamaForCausalLM.set_eagle3_layers_to_capture)
    for layers, named in ((12, None), (5, None), (12, [1, 5, 8]), (12, [1, 11, 20, 5, 5])):
        body = SimpleNamespace(layers_to_capture=[])
        whole = SimpleNamespace(
            pp_group=SimpleNamespace(is_last_rank=True),
            config=SimpleNamespace(num_hidden_layers=layers),
            model=body,
        )
        tell(whole, named)
        # Its forward compares each layer's number with the list.
        taken = [layer - 1 for layer in range(layers) if layer in body.layers_to_capture]
        config = SimpleNamespace(eagle_config=None if named is None else {"eagle_aux_hidden_state_layer_ids": named})
        assert eagle._layers_read(config, layers) == taken


def test_a_draft_models_rows_have_true_positions() -> None:
    (seam,) = [seam for seam in segments.SEAMS if seam.target.endswith("ForwardBatch.init_new")]
    batch = SimpleNamespace(reqs=[SimpleNamespace()], prefix_lens=[6], extend_lens=[4], forward_mode=ForwardMode.EXTEND)
    moved, rows = torch.tensor([2, 3, 6]).numpy(), torch.tensor([4, 5, 7, 8]).numpy()
    mark_batch(batch, {0: Stretch(2, 9, moved, rows)})
    forward_batch = SimpleNamespace(positions=torch.arange(6, 10))
    # SGLang's backend has nothing of ours to be told.
    runner = SimpleNamespace(server_args=arguments(), is_draft_worker=True, attn_backend=None)
    seam.hook(forward_batch, None, batch, runner)
    assert forward_batch.positions.tolist() == [4, 5, 7, 8]
    batch.forward_mode = ForwardMode.DECODE
    forward_batch.positions = torch.tensor([9])
    seam.hook(forward_batch, None, batch, runner)
    assert forward_batch.positions.tolist() == [9]


def test_tensors_update_the_model_only() -> None:
    worker = SimpleNamespace(
        server_args=arguments(),
        target_worker=SimpleNamespace(update_weights_from_tensor=lambda message: (True, message)),
    )
    hook = HOOKS["update_weights_from_tensor"]
    assert hook(None, worker, "tensors") == (True, "tensors")
    worker.server_args = arguments(with_redknot=False)
    assert hook(lambda worker, message: (False, message), worker, "given") == (False, "given")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"speculative_eagle_topk": 4}, "drafts must be chains; add --speculative-eagle-topk 1"),
        ({"enable_hierarchical_cache": True}, "the host keeps the KV of head classes only"),
        ({"enable_memory_saver": True}, "memory of the draft model's KV that was given back"),
        ({"speculative_adaptive": True}, "local slots are counted for drafts of one length"),
        ({"enable_multi_layer_eagle": True}, "several draft models"),
        ({"speculative_draft_window_size": 64}, "--speculative-draft-window-size 64 .* was not tried"),
        ({"speculative_use_rejection_sampling": True}, "--speculative-use-rejection-sampling .* was not tried"),
        ({"speculative_draft_attention_backend": "triton"}, "on a CPU the draft model has one attention"),
        ({"disaggregation_mode": "prefill"}, "how many slots a decode server promises does not count drafts"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RedKnotError, match=why):
        refuse_unsupported(arguments(**changes), None, ARGUMENTS)


def test_plans_beside_the_forward_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ENABLE_OVERLAP_PLAN_STREAM", "1")
    with pytest.raises(RedKnotError, match="copies of documents' KV begin with the plan"):
        refuse_unsupported(arguments(), None, ARGUMENTS)
