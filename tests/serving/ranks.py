# SPDX-License-Identifier: Apache-2.0
"""Servers of two tensor-parallel ranks, on a CPU as well."""

from __future__ import annotations

import os

import pytest
import torch

from tests.serving import harness

needs_two = pytest.mark.skipif(
    not harness.ON_CPU and torch.cuda.device_count() < 2, reason="two ranks need two GPUs, or a machine without any"
)
_CORES = sorted(os.sched_getaffinity(0))
# On a CPU SGLang finds no NCCL to talk over, only where the library is missing, and wants a part of the cores for
# each rank.
TWO_RANKS = {
    "SGLANG_NCCL_SO_PATH": "/nonexistent",
    "SGLANG_CPU_OMP_THREADS_BIND": f"{_CORES[0]}|{_CORES[-1]}",
    **harness.IMPORTED,
}
