# SPDX-License-Identifier: Apache-2.0
"""SGLang's breakable prefill graphs: beside each of them one that holds the attention as well.

SGLang's graph breaks at every attention, which then runs eagerly. For a few rows, such as the tail of a cached prompt or the
repaired rows of segments, launching the attention of all layers takes the host longer than the whole forward takes the
device. Extend paths fa3 and triton can plan in persistent buffers, so that further graphs of the same rows, one for each of the
paths in use, need no break. What probes and questions keep of rows is part of them. Batches that they cannot plan so (more runs
than there is room for) take SGLang's, and so does every batch of a server with adapters; the backend counts them (`forwards.py`).

Under a head map with retrieval heads one more graph of the smaller sizes ends at the deepest of them, for texts that ask for
documents (`choosing.py`): questions are short, and of longer ones the device has more work than the host.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from redknot_sglang import active
from redknot_sglang.hooks.v0_5_17.choosing import first_layers
from redknot_sglang.seams import Seam

# Rows beyond which the device takes longer than the host anyway, even for a model of 1.5 billion parameters, so that more graphs
# would only make start-up longer.
_MOST_ROWS = 4096
# The same of texts that ask for documents, which are questions with their lead at the most.
_MOST_ASKING_ROWS = 512
# Set while a whole graph is captured.
_recording = False
# Number of the graph that ends at the deepest retrieval head, which no path has.
_CHOOSING = 9


def _whole(key: Any, number: int) -> Any:
    """The key of a path's graph beside SGLang's; SGLang takes any `variant_label` of a prefill graph for one of its own."""
    return type(key)(size=key.size, stream_idx=-1 - number)


def _reserve(runner: Any, *args: Any, **kwargs: Any) -> None:
    runner.redknot_whole, runner.redknot_forwards = 0, None
    # Sizes that have a graph which ends at the deepest retrieval head.
    runner.redknot_choosing = []
    if active.config_of(runner.model_runner.server_args) is None:
        return
    from redknot_sglang.attention import RedKnotAttention
    from redknot_sglang.seams.sglang import BreakableCudaGraphBackend

    backend = runner.model_runner.attn_backend
    if not isinstance(backend, RedKnotAttention):
        return
    runner.redknot_forwards = backend.forwards
    backend.forwards.sizes = runner.capture_num_tokens
    # With adapters SGLang prepares more for a capture than its own graphs' forward; those have not been tried here.
    if isinstance(runner.backend, BreakableCudaGraphBackend) and not runner.enable_lora:
        runner.redknot_whole = backend.init_whole_graphs(min(runner.max_num_tokens, _MOST_ROWS))


def _choosing(key: Any) -> Any:
    """The key of the graph that ends at the deepest retrieval head: behind those of all paths."""
    return _whole(key, _CHOOSING)


def _capture_whole(result: Any, runner: Any, size: int, *args: Any, **kwargs: Any) -> None:
    """After SGLang's graph of these rows, ours."""
    from redknot_sglang.seams.sglang import ShapeKey

    key = ShapeKey(size=size)
    for number in range(runner.redknot_whole):
        _capture(runner, size, number, _whole(key, number))
    if not runner.redknot_whole or size > _MOST_ASKING_ROWS:
        return
    facts, model = runner.model_runner.attn_backend.facts, runner.model_runner.model
    if facts.asking_layers:
        # Rows of questions stand together, as path 0 has them.
        with first_layers(model, facts.asking_layers):
            if _capture(runner, size, 0, _choosing(key)):
                runner.redknot_choosing.append(size)


def _capture(runner: Any, size: int, number: int, key: Any) -> bool:
    """Capture a path's graph of these rows; returns whether it can be planned."""
    global _recording
    forward_batch, backend = runner.capture_prepare(size)
    if backend.plan_whole_graph(forward_batch, size, number) is None:
        return False
    _recording = True
    try:
        runner.backend.capture_one(key, partial(runner._run_forward, forward_batch, size))
    finally:
        _recording = False
    return True


def _attention(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Without a break while a whole graph is captured."""
    if not _recording:
        return original(*args, **kwargs)
    from redknot_sglang.seams.sglang import unified_attention_with_output

    return unified_attention_with_output(*args, **kwargs)


def _plan(original: Any, runner: Any, forward_batch: Any, static_forward_batch: Any, num_tokens: int) -> None:
    runner.redknot_planned = None
    if getattr(runner.model_runner.attn_backend, "choosing", False):
        # It was planned when it was found to have a graph.
        runner.redknot_planned = runner.redknot_ahead
    elif getattr(runner, "redknot_whole", 0):
        runner.redknot_planned = runner.model_runner.attn_backend.plan_whole_graph(forward_batch, num_tokens)
    elif getattr(runner, "redknot_forwards", None) is not None:
        runner.redknot_forwards.by_broken_graph("adapters_or_path")
    if runner.redknot_planned is None:
        original(runner, forward_batch, static_forward_batch, num_tokens)


def _key(original: Any, runner: Any, num_tokens: int, forward_batch: Any) -> Any:
    key = original(runner, num_tokens, forward_batch)
    if getattr(runner, "redknot_planned", None) is None:
        return key
    chooses = getattr(runner.model_runner.attn_backend, "choosing", False)
    whole = _choosing(key) if chooses else _whole(key, runner.redknot_planned)
    assert whole in runner.backend._graphs, f"no whole prefill graph of {num_tokens} rows was captured"
    return whole


_RUNNER = "model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner"
SEAMS = (
    Seam(f"{_RUNNER}.capture", _reserve, "before", "buffers of prefill graphs that hold the attention"),
    Seam(f"{_RUNNER}.capture_one_shape", _capture_whole, "after", "prefill graphs that hold the attention"),
    Seam(f"{_RUNNER}._prepare_forward_metadata_for_replay", _plan, "around", "which batches they can serve"),
    Seam(f"{_RUNNER}._shape_key", _key, "around", "which graph to replay"),
    Seam(
        "layers.radix_attention.breakable_unified_attention_with_output",
        _attention,
        "around",
        "no break while they are captured",
    ),
)
