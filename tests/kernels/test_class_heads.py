# SPDX-License-Identifier: Apache-2.0
"""Heads are parted by class and put back without a kernel, on the CPU."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels.class_heads import ClassHeads, Target
from tests.kernels.heads_cases import LAYERS, check_put, check_split


@pytest.mark.parametrize("layer", LAYERS)
def test_split(layer: str) -> None:
    check_split(layer, rows=5, head_dim=8)
    check_split(layer, rows=5, head_dim=8, pool_dtype=torch.float8_e4m3fn, scales=(0.3, 1.7))


def test_put() -> None:
    check_put(rows=5, head_dim=8)


@pytest.mark.parametrize(
    ("numbers", "adjacent", "whole"),
    [([0, 1, 2], True, True), ([1, 2], True, False), ([0, 2], False, False), ([], False, False)],
)
def test_only_neighbours_are_a_view(numbers: list[int], adjacent: bool, whole: bool) -> None:
    target = Target(torch.zeros(4, 6, 8), ClassHeads.of(numbers, 2, torch.device("cpu")))
    assert (target.view is not None) == adjacent
    assert (target.contiguous_view is not None) == whole
    if target.view is not None:
        target.view.fill_(1.0)
        assert target.out.sum() == target.out[:, target.heads.query].sum() == 4 * 8 * len(target.heads.query)
