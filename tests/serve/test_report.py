# SPDX-License-Identifier: Apache-2.0
"""What requests that end report, and what is counted of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redknot_sglang.plan.arithmetic import Arithmetic
from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.request import RequestState
from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.serve.report import Reports, count_stretch
from redknot_sglang.serve.report_key import KEY

ARITHMETIC = Arithmetic(row=1000, pair=1, wide=0, near=0, probe=1, window=4, sink=1)


class Counts:
    """Stands for the Prometheus metrics."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.isolated: list[tuple[int, int]] = []
        self.updates = 0

    def count_request(self, report: dict[str, Any]) -> None:
        self.requests.append(report)

    def count_isolated(self, rows: int, flops: int) -> None:
        self.isolated.append((rows, flops))

    def update(self, tree: Any) -> None:
        self.updates += 1


def reports(arithmetic: Arithmetic | None = ARITHMETIC) -> tuple[Reports, Any]:
    pool = SimpleNamespace(bytes_per_slot=ClassBytes(10, 100))
    allocator = SimpleNamespace(get_kvcache=lambda: pool)
    tree, counts = SimpleNamespace(token_to_kv_pool_allocator=allocator, local_reach=(4, 1)), Counts()
    metrics: Any = counts
    return Reports(tree, arithmetic, metrics, metrics), counts


def request(state: RequestState, finished: str | None = "stop") -> Any:
    req = SimpleNamespace(origin_input_ids=range(20), output_ids=[1, 2], cached_tokens=8, customized_info=None)
    req.finished_reason, req.retracted_stain, req.redknot = finished, False, state
    return req


def test_a_segmented_request_reports_what_was_done_and_is_counted() -> None:
    listener, counts = reports()
    req = request(RequestState(Plan(((2, 8), (8, 14)), parse_repair("boundary:1")), start=2))
    req.redknot.fresh.add((8, 14))
    count_stretch(req, Stretch(2, 20, np.r_[3:8, 9:14], np.r_[2, 8, 14:20]))
    listener.request_ended(req)
    (report,) = counts.requests
    assert req.customized_info == {KEY: [report] * 2}
    assert (report["mode"], report["policy"], report["segments"]) == ("segmented", "boundary:1", 2)
    assert (report["relocated_tokens"], report["repaired_tokens"]) == (10, 2)
    assert report["cached_tokens"] == 8 - 5, "a segment that was computed for it was not in the cache"
    assert report["computed_tokens"] == 17 and report["computed_rows"] == 8, "segments are not the request's own work"
    assert report["flops"] == 8 * 1000 and report["dense_flops"] == 20 * 1000
    assert report["kv_bytes"] == 22 * 10 + 5 * 100


def test_an_exact_request_has_its_operations_counted_too() -> None:
    listener, _ = reports()
    req = request(RequestState())
    listener.request_ended(req)
    (report, _) = req.customized_info[KEY]
    assert (report["mode"], report["flops"], report["dense_flops"]) == ("exact", 12 * 1000, 20 * 1000)
    assert report["computed_rows"] == report["computed_tokens"] == 12


def test_isolated_prefills_are_counted_apart() -> None:
    listener, counts = reports()
    listener.request_ended(request(RequestState(identity=(None, b""))))
    assert counts.isolated == [(12, 12 * 1000)] and not counts.requests


@pytest.mark.parametrize("finished", ["stop", None])
def test_who_is_retracted_reports_later(finished: str | None) -> None:
    listener, counts = reports()
    req = request(RequestState(), finished)
    listener.request_ended(req)
    assert (req.customized_info is None) == (finished is None) and len(counts.requests) == (finished is not None)


def test_without_segmented_mode_nothing_is_counted_and_exact_requests_report() -> None:
    listener, counts = reports(arithmetic=None)
    req = request(RequestState())
    listener.request_ended(req)
    listener.slots_changed()
    report = req.customized_info[KEY][0]
    assert report["mode"] == "exact" and "flops" not in report and not counts.requests and counts.updates == 1
