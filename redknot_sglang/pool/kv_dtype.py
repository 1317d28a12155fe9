# SPDX-License-Identifier: Apache-2.0
"""The dtype in which KV is stored, by the flag."""

from __future__ import annotations

import torch

from redknot_sglang.errors import RedKnotError
from redknot_sglang.kernels.stored import is_fp8


def kv_dtype(name: str, model: torch.dtype) -> torch.dtype:
    """The dtype in which KV is stored. name: `--kv-cache-dtype`, one that is not refused. model: the model's own dtype."""
    named = {
        "bf16": torch.bfloat16,
        "bfloat16": torch.bfloat16,
        "fp8_e4m3": torch.float8_e4m3fn,
        "fp8_e5m2": torch.float8_e5m2,
    }
    return model if name == "auto" else named[name]


def check_kv_dtype(name: str, found: torch.dtype) -> None:
    """Sizes at start, certificates and peers go by the flag, so what a checkpoint alone asks for must be said there, too.

    name: `--kv-cache-dtype`. found: the dtype that SGLang has made of it and of the loaded checkpoint.
    Raises RedKnotError if the flag is auto and the checkpoint asks for 8-bit floats.
    """
    if name == "auto" and is_fp8(found):
        raise RedKnotError(
            "the checkpoint asks for KV of 8-bit floats, by which a model answers otherwise: add --kv-cache-dtype fp8_e4m3 to have that, "
            "or --kv-cache-dtype bfloat16 for KV as it is computed"
        )
