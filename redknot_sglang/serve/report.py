# SPDX-License-Identifier: Apache-2.0
"""The report about a finished request that its caller gets, `meta_info.redknot`, and what the request adds to the
metrics.

docs/serving.md explains the keys of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from redknot_sglang.config import STARTED
from redknot_sglang.plan.arithmetic import Arithmetic
from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.request import is_isolated, state_of
from redknot_sglang.plan.spans import inside
from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.serve.metrics import ClassMetrics, SegmentMetrics
from redknot_sglang.serve.report_key import KEY


class Reports:
    """Listens to a prefix tree: gives each request that ends its report, and keeps the metrics up to date.

    tree: a prefix cache over a HeadClassPool.
    arithmetic: counts the operations of prefill on all ranks; None if the server cannot serve segmented requests.
    classes, segments: the metrics to keep up to date; None on a server without metrics.
    prefills: whether prompts are computed here. A decode server says nothing of what they took: their prefill server does.
    weights: says which weights this server computes with now, as in `Certification`.
    """

    def __init__(
        self,
        tree: Any,
        arithmetic: Arithmetic | None,
        classes: ClassMetrics | None = None,
        segments: SegmentMetrics | None = None,
        prefills: bool = True,
        weights: Callable[[], str] = lambda: STARTED,
    ) -> None:
        self._tree, self._arithmetic, self._prefills, self._weights = tree, arithmetic, prefills, weights
        self._classes, self._segments = classes, segments
        self._cost: ClassBytes = tree.token_to_kv_pool_allocator.get_kvcache().bytes_per_slot

    def request_ended(self, req: Any) -> None:
        """A request has ended: give it its report, and count it if it was segmented or computed a segment."""
        arithmetic, (window, sink) = self._arithmetic, self._tree.local_reach
        report = report_request(req, window, sink, self._cost, arithmetic, self._prefills, self._weights())
        if self._segments is None or arithmetic is None:
            return
        if is_isolated(req):
            rows = np.arange(int(req.cached_tokens), len(req.origin_input_ids))
            self._segments.count_isolated(len(rows), arithmetic.computed(rows))
        elif report is not None:
            self._segments.count_request(report)

    def slots_changed(self) -> None:
        """Show the new state."""
        if self._classes is not None:
            self._classes.update(self._tree)


def sequence_bytes(length: int, window: int, sink: int, cost: ClassBytes) -> int:
    """Bytes of KV that a sequence needs: global slots of all tokens, local slots of sink and window.

    length: tokens, prompt and answer.
    window: W in tokens.
    sink: S in tokens.
    cost: bytes of a slot of each class.
    """
    return length * cost.global_slot + min(length, sink + window) * cost.local


def report_request(
    req: Any,
    window: int,
    sink: int,
    cost: ClassBytes,
    arithmetic: Arithmetic | None = None,
    prefills: bool = True,
    weights: str = STARTED,
) -> dict[str, Any] | None:
    """Attach the report to a finished request and return it. Returns None for one that was retracted, since it goes on
    later.

    req: SGLang's Req.
    window: W in tokens.
    sink: S in tokens.
    cost: bytes of a slot of each class.
    arithmetic: counts the operations of prefill; None where the server cannot serve segmented requests, and then exact
        ones have no such counts.
    prefills: as for `Reports`.
    weights: those that the answer was computed with. The report says so if they are not those of the start: the processes that have
        the tokenizer, of which there may be several, do not all hear of an update.

    SGLang passes custom values on as a list with an entry for each output token, cut where a stop string cuts the
    output. So every entry is the report, and `hooks/v0_5_17/tokenizer.py` makes the list into the object that callers
    see.
    """
    if req.finished_reason is None or not req.output_ids:
        return None
    length = len(req.origin_input_ids) + len(req.output_ids)
    state = state_of(req)
    plan, selection = state.plan, state.selection
    report: dict[str, Any] = {
        "mode": "exact" if plan is None else "segmented",
        "cached_tokens": int(req.cached_tokens),
        "computed_tokens": len(req.origin_input_ids) - int(req.cached_tokens),
        "computed_rows": len(req.origin_input_ids) - int(req.cached_tokens),
        "kv_bytes": sequence_bytes(length, window, sink, cost),
        "stock_kv_bytes": length * cost.stock,
    }
    if weights != STARTED:
        report["weights"] = weights
    if not prefills:
        # Of the prompt this server knows what it was told: how much of it was cached.
        del report["computed_tokens"], report["computed_rows"]
        if plan is not None:
            report |= {"segments": len(plan.segments), "policy": plan.repair.name}
    if arithmetic is not None:
        prompt = len(req.origin_input_ids)
        report |= {
            "flops": arithmetic.computed(np.arange(int(req.cached_tokens), prompt)),
            "dense_flops": arithmetic.dense(prompt),
        }
    if plan is not None and arithmetic is not None:
        rows = plan.computed(state.start, prompt)
        report |= {
            "segments": len(plan.segments),
            "policy": plan.repair.name,
            "reused_tokens": int(req.cached_tokens),
            "relocated_tokens": state.relocated,
            "repaired_tokens": state.repaired,
            "computed_rows": len(rows),
            "flops": arithmetic.computed(rows) + state.probed_flops,
        }
    if selection is not None and arithmetic is not None:
        report |= {
            "mode": "segmented",
            "segments": selection.segments,
            "policy": selection.policy,
            "chosen_segments": list(selection.chosen),
            "prompt_tokens": selection.prompt,
            "cached_tokens": selection.cached,
            "computed_tokens": prompt - state.start,
            "computed_rows": prompt - state.start,
            "reused_tokens": state.start,
            "relocated_tokens": 0,
            "repaired_tokens": 0,
            "flops": arithmetic.computed(np.arange(state.start, prompt)) + selection.operations,
            "dense_flops": arithmetic.dense(selection.prompt),
            "stock_kv_bytes": (selection.prompt + len(req.output_ids)) * cost.stock,
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
    state = state_of(req)
    assert state.plan is not None
    state.relocated += len(stretch.moved)
    state.repaired += int(inside(stretch.rows, state.plan.segments).sum())
    req.cached_tokens -= int(inside(stretch.moved, sorted(state.fresh)).sum())
