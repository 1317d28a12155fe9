# SPDX-License-Identifier: Apache-2.0
"""Copies of host arrays to the device that nothing waits for.

CUDA copies pageable memory of more than 64 KiB only when everything queued before has run, and the host waits with it. From
pinned memory it does not. torch gives pinned blocks back to its cache when the copies out of them are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray[Any, Any] | Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copy an array to the device; the copy is queued on the current stream and nothing waits for it.

    values: numbers on the host, any shape.
    device: where the tensor will be.
    dtype: of the tensor.
    """
    host = torch.as_tensor(values, dtype=dtype)
    return pinned(host, device).to(device, non_blocking=True)


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """`host` in memory from which a queued copy to `device` keeps nobody waiting; itself on a CPU."""
    return host.pin_memory() if device.type == "cuda" else host
