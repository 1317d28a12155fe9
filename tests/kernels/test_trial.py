# SPDX-License-Identifier: Apache-2.0
"""Trial runs find a path that computes wrongly, raises, or ends its process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redknot_sglang.kernels import trial
from redknot_sglang.kernels.batch import ClassSpec
from redknot_sglang.kernels.decode_torch import TorchDecode
from redknot_sglang.kernels.extend_torch import TorchExtend
from tests.kernels.cases import make_spec

SPEC = make_spec(group=2, head_dim=24, window=300, sink=7)


class WrongExtend(TorchExtend):
    """Ten percent off for local heads."""

    def run(self, head_class: Any, *rest: Any, **options: Any) -> torch.Tensor:
        out = super().run(head_class, *rest, **options)
        return out * 0.9 if head_class == "local" else out


class WrongDecode(TorchDecode):
    """Ten percent off for global heads."""

    def run(self, head_class: Any, *rest: Any, **options: Any) -> torch.Tensor:
        out = super().run(head_class, *rest, **options)
        return out * 0.9 if head_class == "global" else out


def test_a_right_path_passes() -> None:
    trial.try_extend(TorchExtend(SPEC), SPEC)
    trial.try_decode(TorchDecode(SPEC), SPEC)


def test_a_wrong_path_is_told_with_its_class_and_error() -> None:
    with pytest.raises(RuntimeError, match="local heads are off by 1.0e-01"):
        trial.try_extend(WrongExtend(SPEC), SPEC)
    with pytest.raises(RuntimeError, match="global heads are off by 1.0e-01"):
        trial.try_decode(WrongDecode(SPEC), SPEC)


def test_a_path_that_raises_gives_its_first_line_as_reason() -> None:
    def broken(spec: ClassSpec) -> TorchExtend:
        raise RuntimeError("ninja: not found\nlong build log")

    reason = trial.extend_trial_error(broken, SPEC)
    assert reason == "a trial run failed with RuntimeError: ninja: not found"


def test_the_shape_of_the_widths_does_not_ask_for_another_trial() -> None:
    built = []

    def counting(spec: ClassSpec) -> TorchDecode:
        built.append(spec)
        raise RuntimeError("no")

    for n_local in (1, 3):
        trial.decode_trial_error(counting, make_spec(n_local=n_local))
    assert [spec.local_widths for spec in built] == [(1,)]


def test_a_child_that_ends_its_process_is_a_reason() -> None:
    """Without a CUDA device the child dies, as it does where a library lacks a kernel."""
    if torch.cuda.is_available():
        pytest.skip("the child would succeed")
    reason = trial.extend_trial_error_in_child(TorchExtend, SPEC)
    assert reason is not None and reason.startswith("a trial run failed: ")
