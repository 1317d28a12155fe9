# SPDX-License-Identifier: Apache-2.0
"""Attention, storing, relocation and document sums over pools of 8-bit floats on a real GPU, against the oracle of what they hold."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels.batch import CLASSES, ClassSpec, HeadClass
from redknot_sglang.kernels.extend_fa3 import Fa3Extend
from redknot_sglang.kernels.select import PAIRS, available_paths, select_paths
from redknot_sglang.kernels.stored import FP8
from tests.gpu.test_kernels import LENS, PREFIXES, ROWS, WINDOWS, assert_near, gpu_spec
from tests.kernels.cases import SCALE, make_case, scatter, stored_as
from tests.kernels.heads_cases import LAYERS, check_split

pytestmark = pytest.mark.gpu

SHAPES = [
    *(("triton", dim, group) for dim, group in ((128, 4), (128, 8), (64, 1), (96, 3), (256, 8))),
    *(("flashinfer", dim, group) for dim, group in ((128, 4), (64, 4), (256, 8))),
]
SCALES = (0.5, 3.0)


def fp8_spec(dtype: torch.dtype, head_dim: int = 128, group: int = 4, window: int = 128, sink: int = 4) -> ClassSpec:
    return stored_as(gpu_spec(head_dim, group, window, sink), dtype)


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize(("name", "head_dim", "group"), SHAPES)
def test_every_path_reads_what_is_stored(name: str, head_dim: int, group: int, dtype: torch.dtype) -> None:
    """Extend and decode of both classes, with scales of keys and of values and without."""
    for window, sink in WINDOWS:
        spec = fp8_spec(dtype, head_dim, group, window, sink)
        reason = PAIRS[name].why_not(spec)
        assert reason is None, reason
        paths = select_paths(name, spec)
        extend = make_case(spec, PREFIXES, ROWS)
        decode = make_case(spec, [n - 1 for n in LENS], [1] * len(LENS), seed=1)
        for case in (extend, decode):
            case.store_as(dtype)
        paths.extend.plan_extend(extend.extend)
        paths.decode.plan_decode(decode.decode)
        for scales in ((1.0, 1.0), SCALES):
            for head_class in CLASSES:
                want, _ = extend.expected(extend.extend, head_class, scales)
                assert_near(extend.run(paths.extend, head_class, scales), want)
                assert_near(extend.run_to_targets(paths.extend, head_class, scales=scales), want)
                want, _ = decode.expected(decode.decode, head_class, scales)
                assert_near(decode.run(paths.decode, head_class, scales), want)
                assert_near(decode.run_to_targets(paths.decode, head_class, scales=scales), want)


@pytest.mark.parametrize("dtype", FP8)
def test_scattered_rows(dtype: torch.dtype) -> None:
    spec = fp8_spec(dtype)
    case = make_case(spec, [0, 3, 900], [2000, 1, 600])
    case.store_as(dtype)
    batch = scatter(case, [[0, 1, *range(5, 2000, 37)], [0], [2, 3, 4, 599]])
    path = select_paths("triton", spec).extend
    path.plan_extend(batch)
    for head_class in CLASSES:
        assert_near(case.run(path, head_class, SCALES), case.expected(batch, head_class, SCALES)[0])


@pytest.mark.parametrize("name", ["triton", "flashinfer"])
def test_decode_graphs(name: str) -> None:
    spec = fp8_spec(torch.float8_e4m3fn)
    path = select_paths(name, spec).decode
    case = make_case(spec, [n - 1 for n in LENS], [1] * len(LENS), seed=2)
    case.store_as(torch.float8_e4m3fn)
    path.init_graph(max_bs=len(LENS), max_context=10_000)

    def run() -> dict[HeadClass, torch.Tensor]:
        return {head_class: case.run(path, head_class, SCALES) for head_class in CLASSES}

    path.plan_graph(case.decode)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        run()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    path.plan_graph(case.decode)
    graph.replay()
    for head_class in CLASSES:
        assert_near(out[head_class], case.expected(case.decode, head_class, SCALES)[0])


def test_prefill_graph_plans() -> None:
    spec = fp8_spec(torch.float8_e4m3fn)
    path = select_paths("triton", spec).extend
    case = make_case(spec, [0, 700, 40], [130, 1, 60])
    case.store_as(torch.float8_e4m3fn)
    path.init_extend_graphs(max_rows=256, max_context=2000)  # type: ignore[attr-defined]
    assert path.plan_extend_graph(case.extend, 191)  # type: ignore[attr-defined]
    for head_class in CLASSES:
        assert_near(case.run(path, head_class, SCALES), case.expected(case.extend, head_class, SCALES)[0])


def test_hopper_serves_8_bits_by_flashinfer_and_triton() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("fa3 is for Hopper")
    spec = fp8_spec(torch.float8_e4m3fn)
    assert "in the queries' dtype" in str(Fa3Extend.why_not(spec))
    reasons = available_paths(spec)
    assert reasons["flashinfer"] is None and reasons["triton"] is None
    assert select_paths(None, spec).name == "flashinfer"


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("layer", LAYERS)
def test_heads_are_stored_divided_by_their_scales(layer: str, rows: int, dtype: torch.dtype) -> None:
    """To the bit as torch stores them, numbers that are too large included."""
    for scales in ((1.0, 1.0), (0.3, 1.7)):
        check_split(layer, rows, 128, dtype, "cuda", scales)


def test_no_wait_for_the_device() -> None:
    spec = fp8_spec(torch.float8_e4m3fn)
    case = make_case(spec, [0, 700, 40], [300, 1, 60])
    case.store_as(torch.float8_e4m3fn)
    for name in ("triton", "flashinfer"):
        paths = select_paths(name, spec)
        for mode in ("default", "error"):  # the first round loads kernels
            torch.cuda.set_sync_debug_mode(mode)
            try:
                paths.extend.plan_extend(case.extend)
                paths.decode.plan_decode(case.decode)
                for head_class in CLASSES:
                    pools = case.q[head_class], case.k[head_class], case.v[head_class]
                    paths.extend.run(head_class, *pools, SCALE, k_scale=0.5, v_scale=3.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
