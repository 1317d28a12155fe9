# SPDX-License-Identifier: Apache-2.0
"""The scales by which a model's layers divide keys and values before they are stored as 8-bit floats."""

from __future__ import annotations

from typing import Any

import torch

from redknot_sglang.errors import RedKnotError
from redknot_sglang.kernels.stored import is_fp8


def kv_scales(model: torch.nn.Module, layers: int, dtype: torch.dtype) -> list[tuple[float, float]]:
    """Of each layer the scale of its keys and that of its values, as SGLang has loaded them: with the checkpoint, or from
    `--quantization-param-path`. 1 where there is none, and for a pool of other dtypes, which stores K and V as they are.

    model: a loaded SGLang model.
    layers: how many it has.
    dtype: of the pool.
    Raises RedKnotError for a scale that is not one positive number.
    """
    found = [(1.0, 1.0)] * layers
    if is_fp8(dtype):
        for module in model.modules():
            if type(module).__name__ == "RadixAttention":
                layer: Any = module
                # SGLang keeps the number beside the tensor, but only where the scale comes with the checkpoint.
                k_scale = layer.k_scale if layer.k_scale_float is None else layer.k_scale_float
                v_scale = layer.v_scale if layer.v_scale_float is None else layer.v_scale_float
                number = int(layer.layer_id)
                found[number] = _checked(k_scale, "k_scale", number), _checked(v_scale, "v_scale", number)
    return found


def _checked(value: Any, name: str, number: int) -> float:
    if value is None:
        return 1.0
    scale = float(value) if not isinstance(value, torch.Tensor) or value.numel() == 1 else 0.0
    if not 0.0 < scale < float("inf"):
        raise RedKnotError(
            f"layer {number} has the {name} {value}, and --redknot needs one positive number for a layer: check the "
            "checkpoint's scales or --quantization-param-path, or start the server without --kv-cache-dtype"
        )
    return scale
