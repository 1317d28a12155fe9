# SPDX-License-Identifier: Apache-2.0
"""SGLang's speculative decoding by an EAGLE draft model.

The draft model has a pool of its own with one row for each global slot, whatever the target's heads are; SGLang makes it, and gives it the
target's slots. So a cached prefix has the draft model's KV as well. What is left to do is attention on a CPU, and documents, whose KV is
copied from slot to slot.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.errors import RedKnotError
from redknot_sglang.seams import Seam


def _steps(original: Any, factory: Any) -> Any:
    if not _on_cpu(factory) or factory.speculative_num_steps < 2:
        return original(factory)
    from redknot_sglang.draft_attention import DraftSteps

    return DraftSteps(_one_forward(factory), factory.speculative_num_steps)


def _extend(original: Any, factory: Any) -> Any:
    return _one_forward(factory) if _on_cpu(factory) else original(factory)


def _on_cpu(factory: Any) -> bool:
    server_args = factory.server_args
    return active.config_of(server_args) is not None and server_args.device == "cpu"


def _one_forward(factory: Any) -> Any:
    from redknot_sglang.seams.sglang import ATTENTION_BACKENDS

    return ATTENTION_BACKENDS["torch_native"](factory.draft_model_runner)


def _relocate_with(result: Any, drafter: Any, *args: Any, **kwargs: Any) -> None:
    """Documents that are reused bring the draft model's KV with them."""
    if active.config_of(drafter.server_args) is None:
        return
    from redknot_sglang.errors import RotaryError
    from redknot_sglang.pool.relocation import Follower
    from redknot_sglang.refuse import one_line
    from redknot_sglang.reuse.rotary import rotary_of

    runner = drafter.draft_runner
    with one_line(drafter.server_args.dp_size > 1):
        _check_fits(drafter)
        try:
            rotation = rotary_of(runner.model)
        except RotaryError as error:
            raise RedKnotError(f"of the draft model: {error}; use NGRAM, which drafts without a model") from None
    pool = drafter.token_to_kv_pool_allocator.get_kvcache()
    pool.relocations.follower = Follower(runner.token_to_kv_pool, rotation)


def _check_fits(drafter: Any) -> None:
    """A draft model's first layer reads hidden states of this model, and SGLang looks at their width at the first request only.

    Raises RedKnotError if the widths differ.
    """
    first = getattr(getattr(drafter.draft_runner.model, "model", None), "fc", None)
    if first is None:
        return
    model_config = drafter.target_worker.model_config
    if drafter.server_args.speculative_algorithm == "EAGLE3":
        read = _layers_read(drafter.draft_runner.model_config.hf_config, model_config.num_hidden_layers)
        has, what = len(read) * model_config.hidden_size, f"the outputs of its layers {', '.join(map(str, read))}"
    else:
        has, what = 2 * model_config.hidden_size, "its last hidden state and a token's embedding"
    if first.in_features != has:
        raise RedKnotError(
            f"of the draft model: it reads {first.in_features} numbers a token, and this model has {has} for it, {what}; "
            "--speculative-draft-model-path must be a draft model that was trained for this model"
        )


def _layers_read(hf_config: Any, layers: int) -> list[int]:
    """Layers of a model of `layers` layers whose outputs SGLang hands to an EAGLE-3 draft model with this config."""
    named = (getattr(hf_config, "eagle_config", None) or {}).get("eagle_aux_hidden_state_layer_ids")
    # SGLang takes what goes into the layer behind, each layer once, and nothing behind the last one.
    entered = [2, layers // 2, layers - 3] if named is None else [layer + 1 for layer in named]
    return sorted({layer - 1 for layer in entered if 0 <= layer < layers})


def _target_only(original: Any, eagle_worker: Any, message: Any) -> Any:
    """SGLang would load the tensors into the draft model first, whose weights have the same names and other shapes."""
    if active.config_of(eagle_worker.server_args) is None:
        return original(eagle_worker, message)
    return eagle_worker.target_worker.update_weights_from_tensor(message)


_FACTORY = "speculative.draft_utils.DraftBackendFactory"

SEAMS = (
    Seam(f"{_FACTORY}.create_decode_backend", _steps, "around", "a draft model's attention on a CPU, where it drafts"),
    Seam(f"{_FACTORY}.create_draft_extend_backend", _extend, "around", "the same, where it reads what was accepted"),
    Seam(
        "speculative.eagle_worker_v2.EagleDraftWorker.alloc_memory_pool",
        _relocate_with,
        "after",
        "documents that are reused bring the draft model's KV with them",
    ),
    Seam(
        "speculative.eagle_worker_v2.EAGLEWorkerV2.update_weights_from_tensor",
        _target_only,
        "around",
        "weights of a running server are updated, and not those of its draft model",
    ),
)
