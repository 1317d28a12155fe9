# SPDX-License-Identifier: Apache-2.0
"""What the scheduler does to slots between two batches does not wait for the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from redknot_sglang.kernels.host_copy import to_device
from redknot_sglang.radix.local_locks import LocalLocks

pytestmark = pytest.mark.gpu

N = 40_000  # more than 64 KiB of int64, which would be copied from pageable memory only when the device is done


def test_freeing_local_slots_and_copying_rows_wait_for_nothing() -> None:
    device = torch.device("cuda")
    freed: list[torch.Tensor] = []
    mapping = torch.arange(2 * N, device=device)
    allocator = SimpleNamespace(
        full_to_swa_index_mapping=mapping, swa_attn_allocator=SimpleNamespace(free=freed.append)
    )
    locks: Any = LocalLocks.__new__(LocalLocks)
    locks.cache = SimpleNamespace(token_to_kv_pool_allocator=allocator)
    rows = np.arange(N) + 7
    for mode in ("default", "error"):  # the first round loads kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            slots = to_device(rows, device, torch.int64)
            locks.free_local(slots)
            locks.free_local(slots[:5].int())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if mode == "default":
            assert freed[0].tolist() == rows.tolist() and freed[1].tolist() == [0] * 5
            assert mapping.nonzero().flatten().tolist() == [*range(1, 7), *range(N + 7, 2 * N)]
