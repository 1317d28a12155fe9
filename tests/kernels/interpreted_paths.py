# SPDX-License-Identifier: Apache-2.0
"""The FlashInfer and FA3 paths on the CPU, over stand-ins of the libraries and Triton's interpreter.

Collected by test_triton_interpreted.py alone.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES, ClassSpec
from redknot_sglang.kernels.decode_flashinfer import FlashInferDecode
from redknot_sglang.kernels.extend_fa3 import Fa3Extend
from redknot_sglang.kernels.extend_flashinfer import FlashInferExtend
from redknot_sglang.kernels.paths import ExtendPath
from redknot_sglang.kernels.stored import FP8
from tests.kernels import fake_libraries
from tests.kernels.cases import make_case, make_spec, scatter, stored_as


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attn = ModuleType("sgl_kernel.flash_attn")
    flash_attn.flash_attn_with_kvcache = fake_libraries.flash_attn_with_kvcache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sgl_kernel", ModuleType("sgl_kernel"))
    monkeypatch.setitem(sys.modules, "sgl_kernel.flash_attn", flash_attn)
    monkeypatch.setitem(sys.modules, "flashinfer", fake_libraries)
    processors = type("Properties", (), {"multi_processor_count": 4})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: processors)
    monkeypatch.setattr(torch.cuda, "Event", fake_libraries.Event)


def _check(
    path: ExtendPath,
    spec: ClassSpec,
    prefixes: list[int],
    rows: list[int],
    seed: int = 0,
    scales: tuple[float, float] = (1.0, 1.0),
) -> None:
    case = make_case(spec, prefixes, rows, seed)
    case.store_as(spec.kv_dtype("global"))
    path.plan_extend(case.extend)
    for head_class in CLASSES:
        want, _ = case.expected(case.extend, head_class, scales)
        for run in (case.run, case.run_to_targets):
            torch.testing.assert_close(run(path, head_class, scales=scales).float(), want, atol=4e-3, rtol=2e-3)


@pytest.mark.parametrize("stored", FP8)
@pytest.mark.parametrize("sink", [0, 4])
def test_flashinfer_over_pools_of_8_bits(stored: torch.dtype, sink: int) -> None:
    """Extend, decode and decode graphs, each with scales of keys and values."""
    scales = 0.5, 2.0
    spec = stored_as(make_spec(group=3, window=12, sink=sink, dtype=torch.float16), stored)
    _check(FlashInferExtend(spec), spec, [0, 2, 60, 130], [17, 1, 5, 20], scales=scales)
    case, path = make_case(spec, [0, 5, 250], [1, 1, 1]), FlashInferDecode(spec)
    case.store_as(stored)
    path.init_graph(max_bs=4, max_context=300)
    for plan in (path.plan_decode, path.plan_graph):
        plan(case.decode)
        for head_class in CLASSES:
            want, _ = case.expected(case.decode, head_class, scales)
            torch.testing.assert_close(case.run(path, head_class, scales).float(), want, atol=4e-3, rtol=2e-3)


@pytest.mark.parametrize("build", [FlashInferExtend, Fa3Extend])
@pytest.mark.parametrize(("window", "sink"), [(12, 0), (12, 4), (100, 3)])
def test_extend(build: type, window: int, sink: int) -> None:
    spec = make_spec(group=3, window=window, sink=sink, dtype=torch.float16)
    path = build(spec)
    _check(path, spec, [0, 2, 60, 130], [17, 1, 5, 20])
    _check(path, spec, [3], [2], seed=1)


def test_flashinfer_decode_plans_twice_the_same_way() -> None:
    spec = make_spec(window=20, sink=2, dtype=torch.float16)
    path = FlashInferDecode(spec)
    for seed, lens in enumerate(([0, 5, 250], [40, 19, 20, 21])):
        case = make_case(spec, lens, [1] * len(lens), seed)
        path.plan_decode(case.decode)
        for head_class in CLASSES:
            want, _ = case.expected(case.decode, head_class)
            for run in (case.run, case.run_to_targets):
                torch.testing.assert_close(run(path, head_class).float(), want, atol=2e-3, rtol=2e-3)


def test_graph_replays_read_the_buffers_of_the_capture() -> None:
    spec = make_spec(window=20, sink=2, dtype=torch.float16)
    path = FlashInferDecode(spec)
    path.init_graph(max_bs=4, max_context=300)
    for seed, lens in enumerate(([0, 5, 250], [40, 19], [299, 0, 21])):
        case = make_case(spec, lens, [1] * len(lens), seed)
        path.plan_graph(case.decode)
        for head_class in CLASSES:
            want, _ = case.expected(case.decode, head_class)
            torch.testing.assert_close(case.run(path, head_class).float(), want, atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match="301 tokens"):
        path.plan_graph(make_case(spec, [300], [1]).decode)


@pytest.mark.parametrize("sink", [0, 3])
def test_one_prefill_graph_serves_batches_of_all_sizes(sink: int) -> None:
    spec = make_spec(group=3, n_local=1, window=20, sink=sink, dtype=torch.float16)
    path = Fa3Extend(spec)
    path.init_extend_graphs(max_rows=64, max_context=300)
    places = set()
    for seed, (prefixes, rows, graph) in enumerate(
        [([0], [32], 32), ([250, 0, 40], [5, 9, 12], 32), ([3], [1], 32), ([100, 19], [60, 4], 64)]
    ):
        case = make_case(spec, prefixes, rows, seed)
        assert path.plan_extend_graph(case.extend, graph)
        planned, n = path._planned, sum(rows)
        assert planned is not None
        tensors = *(x for c in CLASSES for x in (planned.pages[c].table, planned.pages[c].lens)), planned.cu_rows
        places.add(tuple(tensor.data_ptr() for tensor in tensors))
        for head_class in CLASSES:
            want, _ = case.expected(case.extend, head_class)
            q = case.q[head_class]
            case.q[head_class] = torch.cat([q, q.new_full((graph - n, *q.shape[1:]), torch.nan)])
            for out in (case.run(path, head_class), case.run_to_targets(path, head_class, rows=n)):
                torch.testing.assert_close(out[:n].float(), want, atol=2e-3, rtol=2e-3)
    assert len(places) == 1, "a recorded graph would read stale buffers"


def test_a_decode_graph_verifies_drafts_of_more_requests() -> None:
    spec = make_spec(group=2, head_dim=16, window=20, sink=2, dtype=torch.float16)
    path = Fa3Extend(spec)
    path.init_extend_graphs(max_rows=66 * 2, max_context=64, max_runs=66)
    for seed, count in enumerate((66, 2)):
        # The last requests fill the graph's batch up: one token before the draft.
        case = make_case(spec, [(7 * at) % 30 if at < count - 1 else 1 for at in range(count)], [2] * count, seed)
        assert path.plan_extend_graph(case.extend, 2 * count)
        for head_class in CLASSES:
            want, _ = case.expected(case.extend, head_class)
            torch.testing.assert_close(case.run(path, head_class).float(), want, atol=2e-3, rtol=2e-3)


def test_what_no_prefill_graph_can_serve_is_left_to_an_eager_plan() -> None:
    spec = make_spec(window=20, sink=2, dtype=torch.float16)
    path = Fa3Extend(spec)
    fits = make_case(spec, [30], [4])
    assert not path.plan_extend_graph(fits.extend, 32), "nothing is reserved yet"
    path.init_extend_graphs(max_rows=32, max_context=60)
    assert path.plan_extend_graph(fits.extend, 32)
    assert not path.plan_extend_graph(fits.extend, 64), "the graph is larger than what is reserved"
    assert not path.plan_extend_graph(fits.extend, 3), "the batch is larger than the graph"
    many = make_case(spec, [0] * 65, [1] * 65)
    for batch in (
        make_case(spec, [0], [33]).extend,
        make_case(spec, [60], [4]).extend,
        many.extend,
        scatter(make_case(spec, [0], [30]), [[0, 5, 20]]),
    ):
        assert not path.plan_extend_graph(batch, 32)


def test_an_extend_and_a_decode_of_one_shape_share_their_workspaces() -> None:
    """Each class has its own, for two streams."""
    spec = make_spec(dtype=torch.float16)
    extend, decode = FlashInferExtend(spec), FlashInferDecode(spec)
    for head_class in CLASSES:
        assert extend._workspace[head_class] is decode._workspace[head_class]
    assert extend._workspace["global"] is not extend._workspace["local"]


def test_fa3_takes_no_scales() -> None:
    case = make_case(make_spec(dtype=torch.float16), [0], [4])
    path = Fa3Extend(case.spec)
    path.plan_extend(case.extend)
    with pytest.raises(ValueError, match=r"v_scale 2.0, but this attention path reads keys and values as they are"):
        path.run("global", case.q["global"], case.k["global"], case.v["global"], 1.0, v_scale=2.0)
