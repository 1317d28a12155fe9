# SPDX-License-Identifier: Apache-2.0
"""The report about a finished request that its caller gets: `meta_info.redknot`. docs/serving.md explains its keys."""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.arithmetic import Arithmetic
from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.options import plan_of
from redknot_sglang.plan.spans import inside
from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.radix.report_key import KEY


def sequence_bytes(length: int, window: int, sink: int, cost: ClassBytes) -> int:
    """Bytes of KV that a sequence needs on one rank: global slots of all tokens, local slots of sink and window.

    length: tokens, prompt and answer.
    window: W in tokens.
    sink: S in tokens.
    cost: bytes of a slot of each class.
    """
    return length * cost.global_slot + min(length, sink + window) * cost.local


def report_request(
    req: Any, window: int, sink: int, cost: ClassBytes, arithmetic: Arithmetic | None = None
) -> dict[str, Any] | None:
    """Attach the report to a finished request and return it; None for a retracted one, which goes on later.

    req: SGLang's Req.
    window: W in tokens.
    sink: S in tokens.
    cost: bytes of a slot of each class.
    arithmetic: counts the operations of this rank's prefill; needed for segmented requests only.

    SGLang passes custom values on as a list with an entry for each output token, cut where a stop string cuts the output.
    So every entry is the report, and `hooks/v0_5_17/tokenizer.py` makes the list into the object that callers see.
    """
    if req.finished_reason is None or not req.output_ids:
        return None
    length = len(req.origin_input_ids) + len(req.output_ids)
    plan = plan_of(req)
    report = {
        "mode": "exact" if plan is None else "segmented",
        "cached_tokens": int(req.cached_tokens),
        "computed_tokens": len(req.origin_input_ids) - int(req.cached_tokens),
        "kv_bytes": sequence_bytes(length, window, sink, cost),
        "stock_kv_bytes": length * cost.stock,
    }
    if plan is not None and arithmetic is not None:
        prompt = len(req.origin_input_ids)
        rows = plan.computed(req.__dict__.get("redknot_start", 0), prompt)
        report |= {
            "segments": len(plan.segments),
            "policy": plan.repair.name,
            "reused_tokens": int(req.cached_tokens),
            "relocated_tokens": req.__dict__.get("redknot_relocated", 0),
            "repaired_tokens": req.__dict__.get("redknot_repaired", 0),
            "flops": arithmetic.computed(rows) + req.__dict__.get("redknot_probed_flops", 0),
            "dense_flops": arithmetic.dense(prompt),
        }
    req.customized_info = {**(req.customized_info or {}), KEY: [report] * len(req.output_ids)}
    return report


def count_stretch(req: Any, stretch: Stretch) -> None:
    """Add one chunk of a segmented request to what its report will say.

    SGLang counts relocated tokens as cached. Those of segments that were computed because of this request were not, and
    are taken off.

    req: SGLang's Req.
    stretch: positions of the chunk that were relocated and computed.
    """
    if req.retracted_stain:
        return
    plan = plan_of(req)
    assert plan is not None
    req.redknot_relocated = req.__dict__.get("redknot_relocated", 0) + len(stretch.moved)
    repaired = int(inside(stretch.rows, plan.segments).sum())
    req.redknot_repaired = req.__dict__.get("redknot_repaired", 0) + repaired
    fresh = sorted(req.__dict__.get("redknot_fresh", ()))
    req.cached_tokens -= int(inside(stretch.moved, fresh).sum())
