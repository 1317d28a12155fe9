# SPDX-License-Identifier: Apache-2.0
"""Which path is chosen, by stand-ins for what a machine could have."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from redknot_sglang.kernels import select
from redknot_sglang.kernels.batch import ClassSpec
from redknot_sglang.kernels.torch_paged import TorchPath
from redknot_sglang.kernels.triton_path import TritonPath
from tests.kernels.cases import make_spec

CUDA = make_spec(device="cuda")


class Built:
    """A path that says yes or no as told."""

    def __init__(self, name: str, reason: str | None) -> None:
        self.name, self.reason = name, reason

    def why_not(self, spec: ClassSpec) -> str | None:
        return self.reason

    def __call__(self, spec: ClassSpec) -> Built:
        return self


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Reasons of the GPU paths, to be edited by a test."""
    reasons: dict[str, str | None] = {"fa3": None, "flashinfer": None, "triton": None, "torch": None}
    monkeypatch.setattr(select, "path_class", lambda name: Built(name, reasons[name]))
    return reasons


def test_the_cpu_is_served_by_torch_without_asking_others() -> None:
    assert isinstance(select.select_path(None, make_spec()), TorchPath)
    reasons = select.available_paths(make_spec())
    assert reasons.pop("torch") is None
    assert set(reasons) == {"fa3", "flashinfer", "triton"}
    assert all("needs a CUDA device" in str(reason) for reason in reasons.values())


def test_the_fastest_that_can_serves_and_the_log_says_why(
    machine: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert select.select_path(None, CUDA).name == "fa3"
    machine["fa3"] = "no kernels of head_dim 64"
    assert select.select_path(None, CUDA).name == "flashinfer"
    assert "fa3 is left out: no kernels of head_dim 64" in caplog.text
    machine["flashinfer"] = "no compiler"
    assert select.select_path(None, CUDA).name == "triton"
    assert "attention path triton on cuda" in caplog.text


def test_a_requested_path_serves_or_the_reason_is_raised(machine: dict[str, str | None]) -> None:
    assert select.select_path("triton", CUDA).name == "triton"
    machine["fa3"] = "this is an A100"
    with pytest.raises(ValueError, match=r"'fa3' cannot serve here: this is an A100. Choose flashinfer or triton"):
        select.select_path("fa3", CUDA)
    with pytest.raises(ValueError, match="unknown attention path 'fa4': choose one of fa3, flashinfer"):
        select.select_path("fa4", CUDA)


def test_triton_knows_its_limits() -> None:
    assert TritonPath.why_not(CUDA) is None
    assert "at most 256" in str(TritonPath.why_not(replace(CUDA, head_dim=512)))
    assert "at most 64 query heads" in str(TritonPath.why_not(replace(CUDA, group=65)))
    assert "not torch.float64" in str(TritonPath.why_not(replace(CUDA, dtype=torch.float64)))


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
