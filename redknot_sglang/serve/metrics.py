# SPDX-License-Identifier: Apache-2.0
"""Prometheus gauges per head class, under SGLang's `/metrics` (`--enable-metrics`)."""

from __future__ import annotations

from typing import Any

from redknot_sglang.serve.status import tree_sizes


class ClassMetrics:
    """`redknot:slots{head_class}`, `redknot:slots_used{head_class}`, `redknot:tree_tokens{head_class,state}`."""

    def __init__(self, allocator: Any) -> None:
        # Imported here: prometheus_client fixes its multiprocess directory at import, which SGLang sets at start-up.
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
