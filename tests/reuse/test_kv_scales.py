# SPDX-License-Identifier: Apache-2.0
"""Where the scales of KV come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redknot_sglang.errors import RedKnotError
from redknot_sglang.reuse.kv_scales import kv_scales


class RadixAttention(torch.nn.Module):
    """SGLang's attention layer, as far as scales go."""

    def __init__(self, number: int, k: Any = None, v: Any = None, floats: tuple[Any, Any] = (None, None)) -> None:
        super().__init__()
        self.layer_id, self.k_scale, self.v_scale = number, k, v
        self.k_scale_float, self.v_scale_float = floats


def model(*layers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ModuleList(layers))


def test_scales_of_a_checkpoint_of_a_file_and_of_none() -> None:
    layers = (
        RadixAttention(1, torch.tensor(0.5), torch.tensor(2.0), (0.5, 2.0)),
        RadixAttention(0),
        RadixAttention(2, 0.25, 0.75),
        RadixAttention(3, torch.tensor([4.0]), torch.tensor(8.0)),
    )
    wanted = [(1.0, 1.0), (0.5, 2.0), (0.25, 0.75), (4.0, 8.0)]
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        assert kv_scales(model(*layers), 4, dtype) == wanted
    assert kv_scales(model(*layers), 4, torch.bfloat16) == [(1.0, 1.0)] * 4, "stored as it is"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 2.0])])
def test_a_scale_is_one_positive_number(scale: Any) -> None:
    with pytest.raises(RedKnotError, match="layer 0 has the v_scale .* one positive number"):
        kv_scales(model(RadixAttention(0, 1.0, scale)), 1, torch.float8_e4m3fn)
