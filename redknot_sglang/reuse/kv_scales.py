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
                number: Any = module.layer_id
                found[number] = _scale(module, "k_scale"), _scale(module, "v_scale")
    return found


def _scale(layer: Any, name: str) -> float:
    # SGLang keeps the number beside the tensor, but only where the scale comes with the checkpoint.
    value = getattr(layer, f"{name}_float")
    value = getattr(layer, name) if value is None else value
    if value is None:
        return 1.0
    number = float(value) if not isinstance(value, torch.Tensor) or value.numel() == 1 else 0.0
    if not 0.0 < number < float("inf"):
        raise RedKnotError(
            f"layer {layer.layer_id} has the {name} {value}, and --redknot needs one positive number for a layer: check the "
            "checkpoint's scales or --quantization-param-path, or start the server without --kv-cache-dtype"
        )
    return number
