# SPDX-License-Identifier: Apache-2.0
"""Serving on a machine without a CUDA driver.

SGLang's x86-64 wheel brings a CUDA build of `sgl_kernel`, which cannot be imported where `libcuda.so.1` is missing,
although a CPU server calls few of its functions. On such machines a package of the same name that can be imported,
and fails with a clear message when called, goes ahead of it on `sys.path`. It has the few functions that are called, those of
speculative decoding, in plain torch. SGLang's child processes are spawned with a copy of `sys.path`, so they find it before any
plugin runs in them.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

STAND_IN = str(Path(__file__).parent / "_stub")


def has_cuda_driver() -> bool:
    """Whether the CUDA driver library can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def install_kernel_stand_in() -> bool:
    """Put our stand-in for `sgl_kernel` first on `sys.path` if there is no CUDA driver.

    Returns whether the stand-in is on the path now.
    """
    if has_cuda_driver():
        return False
    if STAND_IN not in sys.path:
        sys.path.insert(0, STAND_IN)
    return True
