# SPDX-License-Identifier: Apache-2.0
"""Which prefill graph a batch is given, over runners that have no GPU; tests/gpu/test_prefill_graphs.py has the graphs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.model_executor.runner.shape_key import ShapeKey
from sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend import BreakableCudaGraphBackend

from redknot_sglang import active
from redknot_sglang.attention import RedKnotAttention
from redknot_sglang.forwards import PrefillForwards
from redknot_sglang.hooks.v0_5_17 import choosing, prefill_graphs
from redknot_sglang.reuse.model_facts import ModelFacts
from tests.versions import before_adapted


class FakeAttention(RedKnotAttention):
    """Plans batches of up to ten rows, scattered ones by its second path."""

    def __init__(self, asking_layers: int = 0) -> None:
        self.facts = ModelFacts(asking_layers=asking_layers)
        self.choosing = False
        self.reserved: list[int] = []
        self.planned: list[tuple[int, int]] = []
        self.forwards = PrefillForwards()

    def init_whole_graphs(self, max_rows: int) -> int:
        self.reserved.append(max_rows)
        return 2

    def plan_whole_graph(self, forward_batch: Any, rows: int, number: int | None = None) -> int | None:
        self.planned.append((forward_batch.rows, rows))
        if forward_batch.rows > 10:
            return None
        return (1 if forward_batch.scattered else 0) if number is None else number


def make_runner(
    monkeypatch: pytest.MonkeyPatch, on: bool = True, adapters: bool = False, most: int = 512, asking_layers: int = 0
) -> Any:
    """A runner of breakable graphs of 16 and 512 rows, captured by `capture`, over a model of seven layers.

    A graph is what was true while it was captured: whether attention was recorded, and how many layers ran.
    """
    stack = SimpleNamespace(end_layer=7)
    backend: Any = object.__new__(BreakableCudaGraphBackend)
    backend._graphs = {}
    backend.capture_one = lambda key, forward: backend._graphs.update({key: forward()})
    monkeypatch.setattr(active, "config_of", lambda _: object() if on else None)
    return SimpleNamespace(
        backend=backend,
        enable_lora=adapters,
        max_num_tokens=most,
        capture_num_tokens=[16, 512],
        model_runner=SimpleNamespace(
            attn_backend=FakeAttention(asking_layers), server_args=None, model=SimpleNamespace(model=stack)
        ),
        capture_prepare=lambda size: (SimpleNamespace(rows=min(size, 10), scattered=False), FakeAttention()),
        _run_forward=lambda batch, size: (prefill_graphs._recording, stack.end_layer),
    )


def capture(runner: Any, *sizes: int) -> None:
    prefill_graphs._reserve(runner)
    for size in sizes:
        runner.backend._graphs[ShapeKey(size=size)] = None
        prefill_graphs._capture_whole(None, runner, size)


def key_of(runner: Any, rows: int, size: int, scattered: bool = False) -> tuple[Any, bool]:
    """The graph that a batch of so many rows is given, and whether SGLang planned it."""
    batch, originally = SimpleNamespace(rows=rows, scattered=scattered), []
    prefill_graphs._plan(lambda *args: originally.append(args), runner, batch, batch, size)
    return prefill_graphs._key(lambda _, n, __: ShapeKey(size=n), runner, size, batch), bool(originally)


@before_adapted
def test_each_size_has_a_graph_of_each_path_recorded_without_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(monkeypatch)
    capture(runner, 16, 512)
    graphs = runner.backend._graphs
    assert len(graphs) == 6
    assert [forward for key, forward in graphs.items() if key.stream_idx is not None] == 4 * [(True, 7)]
    assert not prefill_graphs._recording


@before_adapted
def test_a_batch_takes_the_graph_that_it_can_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(monkeypatch)
    capture(runner, 16, 512)
    whole, by_sglang = key_of(runner, 10, 16)
    assert whole.stream_idx is not None and whole in runner.backend._graphs and not by_sglang
    other, by_sglang = key_of(runner, 10, 16, scattered=True)
    assert other in runner.backend._graphs and other != whole and not by_sglang
    assert key_of(runner, 11, 16) == (ShapeKey(size=16), True)
    # The plan before must not linger.
    assert key_of(runner, 9, 512)[0].stream_idx is not None


@before_adapted
def test_short_graphs_that_end_at_the_deepest_retrieval_head_are_for_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more of each size up to 512 rows; a question that has none of them runs without a graph, since the others have all layers."""
    runner = make_runner(monkeypatch, most=1024, asking_layers=3)
    runner.capture_num_tokens = [16, 512, 1024]
    capture(runner, 16, 512, 1024)
    assert list(runner.backend._graphs.values()).count((True, 3)) == 2
    assert list(runner.backend._graphs.values()).count((True, 7)) == 6
    assert runner.model_runner.model.model.end_layer == 7 and runner.redknot_choosing == [16, 512]
    backend = runner.model_runner.attn_backend

    def graph_of(rows: int, tokens: int, size: int) -> Any:
        """The graph of a batch of `tokens` rows, of which the fake's path has `rows` to plan; None if it is to run eagerly."""
        batch = SimpleNamespace(rows=rows, scattered=False, input_ids=range(tokens))
        if not choosing._by_graph(lambda *_: True, runner, batch):
            return None
        prefill_graphs._plan(lambda *_: pytest.fail("planned by SGLang"), runner, batch, batch, size)
        return runner.backend._graphs[prefill_graphs._key(lambda _, n, __: ShapeKey(size=n), runner, size, batch)]

    assert graph_of(9, 9, 16) == (True, 7)
    backend.choosing, backend.planned = True, []
    assert graph_of(9, 9, 16) == graph_of(9, 300, 512) == (True, 3)
    assert backend.planned == [(9, 16), (9, 512)], "once each"
    assert graph_of(9, 600, 1024) is None and len(backend.planned) == 2
    assert graph_of(11, 11, 16) is None, "its path cannot plan it"
    assert choosing._by_graph(lambda *_: False, runner, SimpleNamespace()) is False
    # The next batch is of another kind.
    backend.choosing = False
    assert graph_of(9, 9, 16) == (True, 7)


@before_adapted
def test_without_graphs_of_its_own_a_question_takes_none_of_sglangs(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(monkeypatch, adapters=True, asking_layers=3)
    capture(runner, 16)
    batch = SimpleNamespace(rows=9, scattered=False, input_ids=range(9))
    assert choosing._by_graph(lambda *_: True, runner, batch)
    runner.model_runner.attn_backend.choosing = True
    assert not choosing._by_graph(lambda *_: True, runner, batch)


@before_adapted
def test_buffers_are_reserved_for_the_largest_graph_that_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, reserved in ((512, 512), (8192, 4096)):
        runner = make_runner(monkeypatch, most=most)
        capture(runner)
        assert runner.model_runner.attn_backend.reserved == [reserved]


@before_adapted
@pytest.mark.parametrize(("on", "adapters"), [(False, False), (True, True)])
def test_without_redknot_or_beside_adapters_everything_is_sglangs(
    on: bool, adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(monkeypatch, on, adapters)
    capture(runner, 16)
    assert list(runner.backend._graphs) == [ShapeKey(size=16)]
    assert key_of(runner, 4, 16) == (ShapeKey(size=16), True)
    backend = runner.model_runner.attn_backend
    assert not backend.planned
    # RedKnot beside adapters says why it has no graph of its own.
    backend.forwards.begin()
    key_of(runner, 4, 16)
    assert backend.forwards.status()["broken_graph"] == ({"adapters_or_path": 1} if on else {})
    assert list(backend.forwards.sizes) == ([16, 512] if on else [])


@pytest.mark.pinned
def test_attention_breaks_unless_a_whole_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prefill_graphs._attention(lambda *args, **kwargs: (args, kwargs), 1, layer=2) == ((1,), {"layer": 2})
    monkeypatch.setattr(prefill_graphs, "_recording", True)
    monkeypatch.setattr("sglang.srt.layers.radix_attention.unified_attention_with_output", lambda *args: "recorded")
    assert prefill_graphs._attention(lambda *args: "broken", 1) == "recorded"
