# SPDX-License-Identifier: Apache-2.0
"""Which pair of paths is chosen, by stand-ins for what a machine could have."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from redknot_sglang.config import ATTENTION_CHOICES
from redknot_sglang.kernels import decode_flashinfer, extend_flashinfer, select
from redknot_sglang.kernels.batch import ClassSpec
from redknot_sglang.kernels.decode_flashinfer import FlashInferDecode
from redknot_sglang.kernels.decode_torch import TorchDecode
from redknot_sglang.kernels.decode_triton import TritonDecode
from redknot_sglang.kernels.extend_fa3 import Fa3Extend
from redknot_sglang.kernels.extend_flashinfer import FlashInferExtend
from redknot_sglang.kernels.extend_torch import TorchExtend
from redknot_sglang.kernels.extend_triton import TritonExtend
from tests.kernels.cases import make_spec, stored_as

CUDA = make_spec(device="cuda")
Reasons = dict[str, str | None]


def stand_in(kind: str, own_name: str, reasons: Reasons, serves_scattered: bool = False) -> Any:
    """The class of a path that says yes or no as told."""

    class Path:
        name: ClassVar[str] = own_name
        scattered: ClassVar[bool] = serves_scattered

        def __init__(self, spec: ClassSpec) -> None:
            assert self.why_not(spec) is None

        @staticmethod
        def why_not(spec: ClassSpec) -> str | None:
            return reasons[f"{kind} {own_name}"]

    return Path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Reasons:
    """Reasons of all paths, to be edited by a test."""
    reasons: Reasons = {}
    for kind, names in (("extend", ("fa3", "flashinfer", "triton", "torch")), ("decode", ("flashinfer", "triton"))):
        reasons |= {f"{kind} {name}": None for name in names}
    reasons["extend torch"] = "it serves CPUs"
    decodes = {name: stand_in("decode", name, reasons) for name in ("flashinfer", "triton")}
    pairs = {
        name: select.Pair(
            stand_in("extend", name, reasons, name in ("triton", "torch")),
            tuple(decodes[decode] for decode in own),
        )
        for name, own in (
            ("fa3", ("flashinfer", "triton")),
            ("flashinfer", ("flashinfer",)),
            ("triton", ("triton",)),
            ("torch", ()),
        )
    }
    monkeypatch.setattr(select, "PAIRS", pairs)
    return reasons


def test_the_cpu_is_served_by_torch_and_the_log_does_not_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    paths = select.select_paths(None, make_spec())
    assert isinstance(paths.extend, TorchExtend) and isinstance(paths.decode, TorchDecode) and paths.name == "torch"
    assert select.scattered_extend(paths.extend, make_spec()) is paths.extend
    assert "left out" not in caplog.text
    reasons = select.available_paths(make_spec())
    assert reasons.pop("torch") is None
    assert set(reasons) == {"fa3", "flashinfer", "triton"}
    assert all("needs a CUDA device" in str(reason) for reason in reasons.values())


def test_the_flag_has_the_names_of_the_table() -> None:
    assert tuple(select.PAIRS) == ATTENTION_CHOICES


def test_the_fastest_that_can_serves_and_the_log_says_why(machine: Reasons, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert select.select_paths(None, CUDA).name == "fa3"
    machine["extend fa3"] = "no kernels of head_dim 64"
    assert select.select_paths(None, CUDA).name == "flashinfer"
    assert "attention path fa3 is left out: no kernels of head_dim 64" in caplog.text
    machine["extend flashinfer"] = "no compiler"
    assert select.select_paths(None, CUDA).name == "triton"
    assert "attention path triton on cuda" in caplog.text


def test_fa3_decodes_by_the_fastest_that_can_and_the_log_says_why(
    machine: Reasons, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert select.select_paths("fa3", CUDA).decode.name == "flashinfer"
    assert "left out" not in caplog.text
    machine["decode flashinfer"] = "no compiler"
    assert select.select_paths("fa3", CUDA).decode.name == "triton"
    assert "attention path fa3 decodes by triton; flashinfer is left out: no compiler" in caplog.text


def test_a_pair_that_cannot_decode_is_left_out_with_all_reasons(machine: Reasons) -> None:
    machine["decode flashinfer"] = "no compiler"
    assert select.select_paths(None, replace(CUDA, head_dim=8)).name == "fa3"
    machine["decode triton"] = "too many heads"
    reasons = select.available_paths(CUDA)
    assert reasons["fa3"] == "it has nothing to decode by (flashinfer: no compiler; triton: too many heads)"
    with pytest.raises(ValueError, match="no attention path serves"):
        select.select_paths(None, CUDA)


def test_scattered_rows_go_to_the_first_path_that_plans_them(machine: Reasons) -> None:
    extend = select.select_paths("fa3", CUDA).extend
    assert select.scattered_extend(extend, CUDA).name == "triton"
    machine["extend triton"] = "the group is too large"
    with pytest.raises(ValueError, match="triton: the group is too large; torch: it serves CPUs"):
        select.scattered_extend(extend, CUDA)


def test_a_requested_path_serves_or_the_reason_is_raised(machine: Reasons) -> None:
    assert select.select_paths("triton", CUDA).name == "triton"
    machine["extend fa3"] = "this is an A100"
    with pytest.raises(ValueError, match=r"'fa3' cannot serve here: this is an A100. Choose flashinfer or triton"):
        select.select_paths("fa3", CUDA)
    with pytest.raises(ValueError, match="unknown attention path 'fa4': choose one of fa3, flashinfer"):
        select.select_paths("fa4", CUDA)


@pytest.mark.parametrize("path", [TritonExtend, TritonDecode])
def test_triton_knows_its_limits(path: type[TritonExtend] | type[TritonDecode]) -> None:
    assert path.why_not(CUDA) is None
    assert "at most 256" in str(path.why_not(replace(CUDA, head_dim=512)))
    assert "at most 64 query heads" in str(path.why_not(replace(CUDA, group=65)))
    assert "not torch.float64" in str(path.why_not(replace(CUDA, dtype=torch.float64)))


@pytest.mark.parametrize("path", [FlashInferExtend, FlashInferDecode])
def test_flashinfer_knows_its_limits(path: type[FlashInferExtend] | type[FlashInferDecode]) -> None:
    assert "head_dim 64, 128, 256, the model has 96" in str(path.why_not(replace(CUDA, head_dim=96)))
    assert "not torch.float32" in str(path.why_not(replace(CUDA, head_dim=64)))


def test_fa3_knows_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert "needs a Hopper GPU, this is an A100" in str(Fa3Extend.why_not(CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert "the model has 80" in str(Fa3Extend.why_not(replace(CUDA, head_dim=80)))
    assert "not torch.float32" in str(Fa3Extend.why_not(replace(CUDA, head_dim=64)))


@pytest.mark.parametrize("head_class", ["global", "local"])
def test_fa3_does_not_read_kv_of_8_bits(head_class: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would round queries, too, which decode does not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    stored: dict[str, Any] = {f"{head_class}_kv_dtype": torch.float8_e4m3fn}
    reason = str(Fa3Extend.why_not(replace(CUDA, head_dim=64, dtype=torch.bfloat16, **stored)))
    assert "without a scale" in reason and f"those of {head_class} heads are stored as torch.float8_e4m3fn" in reason


@pytest.mark.parametrize("path", [FlashInferExtend, FlashInferDecode])
def test_flashinfer_reads_kv_of_8_bits_but_of_no_other_dtype(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in (extend_flashinfer, decode_flashinfer):
        for name in ("extend_trial_error", "decode_trial_error"):
            monkeypatch.setattr(library, name, lambda build, spec: None, raising=False)
    spec = replace(CUDA, head_dim=64, dtype=torch.bfloat16)
    for stored in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        assert path.why_not(stored_as(spec, stored)) is None
    assert "or torch.float8_e4m3fn, torch.float8_e5m2; those of global" in str(
        path.why_not(stored_as(spec, torch.float16))
    )


@pytest.mark.parametrize("path", [TritonExtend, TritonDecode])
def test_triton_converts_where_the_gpu_does(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an A100")
    for capability, serves in (((9, 0), True), ((8, 9), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        reason = path.why_not(stored_as(CUDA, torch.float8_e4m3fn))
        assert reason is None if serves else "8.9 or more, this is an A100" in str(reason)
        assert path.why_not(stored_as(CUDA, torch.float8_e5m2)) is None


def test_the_torch_paths_read_kv_of_8_bits() -> None:
    spec = make_spec(dtype=torch.bfloat16)
    spec = replace(spec, global_kv_dtype=torch.float8_e4m3fn, local_kv_dtype=torch.float8_e4m3fn)
    assert spec.kv_dtype("local") == torch.float8_e4m3fn
    assert select.select_paths(None, spec).name == "torch"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"group": 0}, "group is 0"),
        ({"sink": -1}, "sink is -1"),
        ({"local_widths": (2, 2)}, "distinct"),
        ({"global_widths": (), "local_widths": ()}, "no head in either class"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CUDA, **changes)
