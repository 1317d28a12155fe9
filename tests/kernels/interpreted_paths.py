# SPDX-License-Identifier: Apache-2.0
"""The FlashInfer and FA3 paths on the CPU, over stand-ins of the libraries and Triton's interpreter.

Collected by test_triton_interpreted.py alone.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from redknot_sglang.kernels.batch import ClassSpec, HeadClass, Path
from redknot_sglang.kernels.fa3 import Fa3Path
from redknot_sglang.kernels.flashinfer import FlashInferPath
from tests.kernels import fake_libraries
from tests.kernels.cases import make_case, make_spec

CLASSES: tuple[HeadClass, ...] = ("global", "local")


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


def _check(path: Path, spec: ClassSpec, prefixes: list[int], rows: list[int], seed: int = 0) -> None:
    case = make_case(spec, prefixes, rows, seed)
    path.plan_extend(case.extend)
    for head_class in CLASSES:
        want, _ = case.expected(case.extend, head_class, spec.logit_cap)
        for run in (case.run, case.run_to_targets):
            torch.testing.assert_close(run(path, head_class, spec.logit_cap).float(), want, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("build", [FlashInferPath, Fa3Path])
@pytest.mark.parametrize(("window", "sink", "logit_cap"), [(12, 0, 0.0), (12, 4, 0.0), (100, 3, 4.0)])
def test_extend(build: type, window: int, sink: int, logit_cap: float) -> None:
    spec = make_spec(group=3, window=window, sink=sink, dtype=torch.float16, logit_cap=logit_cap)
    path = build(spec)
    _check(path, spec, [0, 2, 60, 130], [17, 1, 5, 20])
    _check(path, spec, [3], [2], seed=1)


def test_flashinfer_decode_plans_twice_the_same_way() -> None:
    spec = make_spec(window=20, sink=2, dtype=torch.float16)
    path = FlashInferPath(spec)
    for seed, lens in enumerate(([0, 5, 250], [40, 19, 20, 21])):
        case = make_case(spec, lens, [1] * len(lens), seed)
        path.plan_decode(case.decode)
        for head_class in CLASSES:
            want, _ = case.expected(case.decode, head_class)
            for run in (case.run, case.run_to_targets):
                torch.testing.assert_close(run(path, head_class).float(), want, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("build", [FlashInferPath, Fa3Path])
def test_graph_replays_read_the_buffers_of_the_capture(build: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlashInferPath, "why_not", staticmethod(lambda spec: None))
    spec = make_spec(window=20, sink=2, dtype=torch.float16)
    path = build(spec)
    path.init_graph(max_bs=4, max_context=300)
    for seed, lens in enumerate(([0, 5, 250], [40, 19], [299, 0, 21])):
        case = make_case(spec, lens, [1] * len(lens), seed)
        path.plan_graph(case.decode, bs=len(lens), capture=seed < 2)
        for head_class in CLASSES:
            want, _ = case.expected(case.decode, head_class)
            torch.testing.assert_close(case.run(path, head_class).float(), want, atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match="301 tokens"):
        path.plan_graph(make_case(spec, [300], [1]).decode, bs=1, capture=False)


def test_flashinfer_refuses_a_cap_it_was_not_planned_for() -> None:
    spec = make_spec(dtype=torch.float16)
    case = make_case(spec, [0], [4])
    path = FlashInferPath(spec)
    path.plan_extend(case.extend)
    with pytest.raises(ValueError, match="ClassSpec.logit_cap"):
        case.run(path, "global", logit_cap=30.0)
