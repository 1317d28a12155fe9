# SPDX-License-Identifier: Apache-2.0
"""SGLang's forward of texts that ask for documents (`question:N`): it ends at the deepest retrieval head.

Nobody reads an answer of such a forward, only the queries of retrieval heads, so that layers behind the deepest of these
and the output layer have nothing to do. What it leaves in the cache is found by such forwards alone (`plan/identity.py`).
It stops only if all requests of its batch are of that kind; rows beside others go through all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redknot_sglang.seams import Seam

# Set while such a forward runs. A process has one forward at a time.
_choosing = False


@contextmanager
def first_layers(model: Any, layers: int) -> Iterator[None]:
    """Within it a model runs its first layers and then its last norm.

    model: SGLang's model, of a class whose keys can be moved (`reuse/rotary.py`): these all loop up to `end_layer`, which is for
        pipelines of several servers, and those are refused.
    layers: how many.
    """
    stack = model.model
    whole, stack.end_layer = stack.end_layer, layers
    try:
        yield
    finally:
        stack.end_layer = whole


def _forward(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    global _choosing
    backend = runner.attn_backend
    if not getattr(backend, "choosing", False):
        return original(runner, *args, **kwargs)
    _choosing = True
    try:
        with first_layers(runner.model, backend.facts.asking_layers):
            return original(runner, *args, **kwargs)
    finally:
        _choosing = False


def _logits(
    original: Any,
    processor: Any,
    input_ids: Any,
    hidden_states: Any,
    lm_head: Any,
    forward_batch: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Zeros while such a forward runs: SGLang samples a token for every request, and that of such a one is thrown away."""
    if not _choosing:
        return original(processor, input_ids, hidden_states, lm_head, forward_batch, *args, **kwargs)
    import torch

    from redknot_sglang.seams.sglang import LogitsProcessorOutput

    shape = forward_batch.batch_size, processor.config.vocab_size
    return LogitsProcessorOutput(next_token_logits=torch.zeros(shape, dtype=torch.float32, device=hidden_states.device))


def _by_graph(original: Any, runner: Any, forward_batch: Any) -> bool:
    """Whether SGLang replays a prefill graph: for such a forward only one that ends where it does (`prefill_graphs.py`)."""
    can: bool = original(runner, forward_batch)
    backend = runner.model_runner.attn_backend
    if not can or not getattr(backend, "choosing", False):
        return can
    rows = len(forward_batch.input_ids)
    size = next(size for size in runner.capture_num_tokens if size >= rows)
    if size not in getattr(runner, "redknot_choosing", ()):
        return False
    runner.redknot_ahead = backend.plan_whole_graph(forward_batch, size)
    return runner.redknot_ahead is not None


SEAMS = (
    Seam(
        "model_executor.model_runner.ModelRunner.forward",
        _forward,
        "around",
        "a forward that only chooses documents ends at the deepest retrieval head",
    ),
    Seam("layers.logits_processor.LogitsProcessor.forward", _logits, "around", "such a forward has no logits"),
    Seam(
        "model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner.can_run_graph",
        _by_graph,
        "around",
        "graphs of all layers are not for such forwards",
    ),
)
