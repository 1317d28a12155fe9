# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, under SGLang's `/metrics` (`--enable-metrics`)."""

from __future__ import annotations

from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.serve.status import tree_sizes


class CertificationMetric:
    """`redknot:certified{policy,certificate}`: 1 if the policy is certified that a request gets which names none, else 0.

    certificate: the digest, empty where none fits.
    """

    def __init__(self, config: RedKnotConfig) -> None:
        # Imported here: prometheus_client fixes its multiprocess directory at import, which SGLang sets at start-up.
        from prometheus_client import Gauge

        self._gauge = Gauge(
            "redknot:certified",
            "Whether the default policy is certified",
            labelnames=["policy", "certificate"],
            multiprocess_mode="mostrecent",
        )
        self._shown: Any = None
        self.update(config)

    def update(self, config: RedKnotConfig) -> None:
        """Show the state of `config`; a certificate that was shown before and is lost goes to 0."""
        found = config.certification
        if self._shown is not None:
            self._shown.set(0)
        self._shown = self._gauge.labels(config.policy, found.digest or "")
        self._shown.set(found.covers(config.policy))


class ClassMetrics:
    """`redknot:slots{head_class}`, `redknot:slots_used{head_class}`, `redknot:tree_tokens{head_class,state}`."""

    def __init__(self, allocator: Any) -> None:
        # Imported here for the reason above.
        from prometheus_client import Gauge

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"redknot:{name}", text, labelnames=["head_class", *labels], multiprocess_mode="mostrecent")

        self._allocator = allocator
        self._used = gauge("slots_used", "KV slots in use, cached ones included")
        self._tree = gauge("tree_tokens", "Tokens whose KV the prefix cache holds", "state")
        slots = gauge("slots", "KV slots")
        slots.labels("global").set(allocator.size_full)
        slots.labels("local").set(allocator.size_swa)

    def update(self, tree: Any) -> None:
        """Set the gauges to the state after a request's KV changed hands."""
        allocator = self._allocator
        self._used.labels("global").set(allocator.size_full - allocator.full_available_size())
        self._used.labels("local").set(allocator.size_swa - allocator.swa_available_size())
        for head_class, states in tree_sizes(tree).items():
            for state, tokens in states.items():
                self._tree.labels(head_class, state).set(tokens)


class SegmentMetrics:
    """`redknot:segment_rows_total{kind}` and `redknot:segment_flops_total{kind}`: prefill of segmented requests.

    Rows are prompt tokens, `reused`, `relocated`, `repaired` and `computed` (repaired ones included) by requests, and
    `isolated`, computed for all who want a segment. Operations are those of requests (`computed`, probes included) and of
    isolated prefills on this rank, and what `dense` prefill without a cache would take.
    """

    def __init__(self) -> None:
        # Imported here for the reason above.
        from prometheus_client import Counter

        self._rows = Counter("redknot:segment_rows", "Prompt tokens of segmented requests", labelnames=["kind"])
        self._flops = Counter("redknot:segment_flops", "Prefill operations of segmented requests", labelnames=["kind"])

    def count_request(self, report: dict[str, Any]) -> None:
        """Add a finished request's `meta_info.redknot`, if it was segmented."""
        if report["mode"] != "segmented":
            return
        for kind in ("reused", "relocated", "repaired", "computed"):
            self._rows.labels(kind).inc(report[f"{kind}_tokens"])
        self._flops.labels("computed").inc(report["flops"])
        self._flops.labels("dense").inc(report["dense_flops"])

    def count_isolated(self, rows: int, flops: int) -> None:
        """Add an isolated prefill."""
        self._rows.labels("isolated").inc(rows)
        self._flops.labels("isolated").inc(flops)
