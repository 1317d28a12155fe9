# SPDX-License-Identifier: Apache-2.0
"""What a finished request tells its caller: `meta_info.redknot`."""

from __future__ import annotations

from typing import Any

from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.radix.report_key import KEY


def sequence_bytes(length: int, window: int, sink: int, cost: ClassBytes) -> int:
    """Bytes of KV that a sequence of `length` tokens needs: all tokens' global slots, local slots of sink + window."""
    return length * cost.global_slot + min(length, sink + window) * cost.local_slot


def report_request(req: Any, window: int, sink: int, cost: ClassBytes) -> None:
    """Attach the report to a finished request; a retracted one goes on later and gets none.

    SGLang streams lists of custom values, one per output token, cut where a stop string cut the output; so every entry is
    the report, and `seams/tokenizer.py` turns the list into the object that callers see.
    """
    if req.finished_reason is None or not req.output_ids:
        return
    length = len(req.origin_input_ids) + len(req.output_ids)
    report = {
        "mode": "exact",
        "cached_tokens": int(req.cached_tokens),
        "computed_tokens": len(req.origin_input_ids) - int(req.cached_tokens),
        "kv_bytes": sequence_bytes(length, window, sink, cost),
        "stock_kv_bytes": length * (cost.global_slot + cost.local_slot),
    }
    req.customized_info = {**(req.customized_info or {}), KEY: [report] * len(req.output_ids)}
