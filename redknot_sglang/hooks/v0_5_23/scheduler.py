# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's scheduler: budgets of the local pool."""

from __future__ import annotations

from typing import Any

from redknot_sglang.seams import Seam


def _reserve_decode_windows(result: Any, adder: Any, *args: Any, **kwargs: Any) -> None:
    """Of the local pool, leave what running requests have yet to take while they decode (as under 0.5.17)."""
    window = getattr(adder.tree_cache, "decode_window", None)
    if window is None or adder.running_batch is None:
        return
    for req in adder.running_batch.reqs:
        owned = req.kv.kv_allocated_len - max(req.cache_protected_len, req.kv.swa_evicted_seqlen)
        to_come = req.sampling_params.max_new_tokens - len(req.output_ids)
        adder.memory_budget.swa_offset += max(0, min(to_come, window - owned))


SEAMS = (
    Seam(
        "managers.schedule_policy.PrefillAdder.__init__",
        _reserve_decode_windows,
        "after",
        "admission leaves room for the windows of running requests",
    ),
)
