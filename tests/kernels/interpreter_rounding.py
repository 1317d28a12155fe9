# SPDX-License-Identifier: Apache-2.0
"""Rounding to 8-bit floats in Triton's interpreter, which leaves the carry of a fraction that is rounded up out of the exponent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

_FP8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}


def round_as_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter round float32 to 8-bit floats by torch: to the nearest, ties to even."""
    original = interpreter._convert_float

    def convert(values: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if given == tl.float32 and wanted in _FP8:
            rows = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
            return rows.to(_FP8[wanted]).view(torch.uint8).numpy()
        return original(values, given, wanted, mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
