# SPDX-License-Identifier: Apache-2.0
"""How keys and values are stored in a pool of 8-bit floats, and read from it.

An 8-bit float has few bits, so a layer may have a *scale* for its keys and one for its values: what is stored is the number divided
by the scale. Numbers beyond the largest 8-bit float are stored as that one.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 4 bits of exponent and 3 of fraction, up to 448; 5 bits of exponent and 2 of fraction, up to 57,344.
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def is_fp8(dtype: torch.dtype) -> bool:
    """Whether it is an 8-bit float that pools can have."""
    return dtype in FP8


def largest(dtype: torch.dtype) -> float:
    """The largest number that is stored as it is: that of an 8-bit float, and 0 for other dtypes, which need no bound."""
    return torch.finfo(dtype).max if is_fp8(dtype) else 0.0


def stored(rows: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Keys or values as a pool stores them.

    rows: any shape and float dtype.
    dtype: of the pool.
    scale: what is stored times this are the rows; 1 unless the pool has 8-bit floats.
    """
    if scale != 1.0:
        rows = rows / scale
    if is_fp8(dtype):
        # torch makes NaN, or infinity, of what is larger.
        rows = rows.clamp(-largest(dtype), largest(dtype))
    return rows.to(dtype)


def loaded(rows: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Keys or values that a pool has stored, in `dtype`. Parameters as of `stored`."""
    rows = rows.to(dtype)
    return rows if scale == 1.0 else rows * scale


def movable(rows: Tensor) -> Tensor:
    """The same memory in a dtype that can be copied by index: torch lacks some such operations for 8-bit floats."""
    return rows.view(torch.uint8) if is_fp8(rows.dtype) else rows
