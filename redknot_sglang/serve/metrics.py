# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, under SGLang's `/metrics` (`--enable-metrics`)."""

from __future__ import annotations

from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.serve.status import tree_sizes


class CertificationMetric:
    """The gauge `redknot:certified{policy,certificate}`: 1 if that policy is certified, else 0.

    policy: the label of the policy under which requests are answered that choose none.
    certificate: the label of the certificate's digest, empty where no certificate fits.
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
        """Show what the server's settings say now; the gauge of a certificate that no longer holds goes to 0."""
        found = config.certification
        if self._shown is not None:
            self._shown.set(0)
        self._shown = self._gauge.labels(config.policy, found.digest or "")
        self._shown.set(found.covers(config.policy))


class ClassMetrics:
    """Gauges of the two pools and of the prefix cache, by head class.

    `redknot:slots` and `redknot:slots_used` have the label `head_class`, `redknot:tree_tokens` also `state`:
    `evictable` or `protected`. `redknot:rank_global_heads` has the label `rank`: global heads of a tensor-parallel
    rank, over all layers.

    allocator: SGLang's allocator of both pools.
    """

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
        ranks = Gauge(
            "redknot:rank_global_heads",
            "Global KV heads of a tensor-parallel rank, over all layers",
            labelnames=["rank"],
            multiprocess_mode="mostrecent",
        )
        dealing = allocator.get_kvcache().dealing
        for rank in range(dealing.ranks):
            ranks.labels(rank).set(dealing.globals_of(rank))

    def update(self, tree: Any) -> None:
        """Set the gauges; called whenever the tree has taken or freed KV.

        tree: the prefix cache.
        """
        allocator = self._allocator
        self._used.labels("global").set(allocator.size_full - allocator.full_available_size())
        self._used.labels("local").set(allocator.size_swa - allocator.swa_available_size())
        for head_class, states in tree_sizes(tree).items():
            for state, tokens in states.items():
                self._tree.labels(head_class, state).set(tokens)


class SegmentMetrics:
    """Counters of what the prefill of segmented requests took: `redknot:segment_rows_total` and
    `redknot:segment_flops_total`, both with the label `kind`.

    A *segment* is a document that is reused at any position of a prompt. Kinds of rows, which are tokens of prompts:

    - `reused`: of a request's prompt, taken from the cache;
    - `relocated`: of a request's prompt, copied from a segment, whether that was cached before or computed for this
      request;
    - `repaired`: of a segment, but computed again in the request;
    - `computed`: of a request's prompt, computed, repaired ones included;
    - `isolated`: of segments that were computed by themselves, for any request.

    Kinds of operations, on all tensor-parallel ranks together: `computed` by requests (probes included), `isolated`,
    and `dense`, what the same prompts would take without any cache.
    """

    def __init__(self) -> None:
        # Imported here for the reason above.
        from prometheus_client import Counter

        self._rows = Counter("redknot:segment_rows", "Prompt tokens of segmented requests", labelnames=["kind"])
        self._flops = Counter("redknot:segment_flops", "Prefill operations of segmented requests", labelnames=["kind"])

    def count_request(self, report: dict[str, Any]) -> None:
        """Add a finished request, if it was segmented.

        report: its `meta_info.redknot`.
        """
        if report["mode"] != "segmented":
            return
        for kind in ("reused", "relocated", "repaired", "computed"):
            self._rows.labels(kind).inc(report[f"{kind}_tokens"])
        self._flops.labels("computed").inc(report["flops"])
        self._flops.labels("dense").inc(report["dense_flops"])

    def count_isolated(self, rows: int, flops: int) -> None:
        """Add the prefill of a segment by itself.

        rows: tokens that were computed.
        flops: operations that all ranks did for them.
        """
        self._rows.labels("isolated").inc(rows)
        self._flops.labels("isolated").inc(flops)


class TierMetrics:
    """Metrics of the device's KV and of the *host tier*, host memory behind it. All but the seconds have the label
    `head_class`.

    Counters: `redknot:tier_hit_tokens_total{tier}`, prefixes that requests went on from; `redknot:tier_tokens_total{move}` and
    `redknot:tier_bytes_total{move}`, copies `backed_up` to the host and `loaded_back`, and of tokens also those evicted: `demoted`
    where the host keeps a copy, `dropped` where none is left, `cooled` before room was short, `host_dropped` on the host, `deleted` for a
    client. Gauge: `redknot:host_slots_used`. Histograms: `redknot:load_back_seconds`, of loads that were begun together, and
    `redknot:eviction_age_tokens{tier}`, of each piece that was evicted, how many tokens requests brought since its last use.
    """

    def __init__(self) -> None:
        # Imported here for the reason above.
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, text: str, label: str) -> Any:
            return Counter(f"redknot:tier_{name}", text, labelnames=["head_class", label])

        self._hits = counter("hit_tokens", "Tokens of prefixes found in the cache, by where their KV was", "tier")
        self._tokens = counter("tokens", "Tokens whose KV was copied or evicted", "move")
        self._bytes = counter("bytes", "Bytes of KV copied", "move")
        self._used = Gauge(
            "redknot:host_slots_used", "Host slots in use", labelnames=["head_class"], multiprocess_mode="mostrecent"
        )
        self._seconds = Histogram(
            "redknot:load_back_seconds",
            "Time of loads from the host",
            buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        )

        self._ages = Histogram(
            "redknot:eviction_age_tokens",
            "Tokens that requests brought between the last use of a cached piece and its eviction",
            labelnames=["head_class", "tier"],
            buckets=tuple(float(4**power) for power in range(5, 15)),
        )

    def observe_age(self, tier: str, head_class: str, age: int) -> None:
        """Add a piece that was evicted. tier: `device` or `host`. age: in tokens."""
        self._ages.labels(head_class, tier).observe(age)

    def count_hit(self, tier: str, head_class: str, tokens: int) -> None:
        """Add tokens of a prefix hit. tier: `device` or `host`."""
        self._hits.labels(head_class, tier).inc(tokens)

    def count_move(self, move: str, head_class: str, tokens: int, size: int) -> None:
        """Add tokens that were copied or evicted. size: bytes copied, 0 for an eviction."""
        self._tokens.labels(head_class, move).inc(tokens)
        if size:
            self._bytes.labels(head_class, move).inc(size)

    def set_used(self, head_class: str, slots: int) -> None:
        """Show how many host slots are in use."""
        self._used.labels(head_class).set(slots)

    def observe_load(self, seconds: float) -> None:
        """Add loads that were begun together."""
        self._seconds.observe(seconds)


class StoreMetrics:
    """Of the store behind the host tier: counters `redknot:store_objects_total{move}` and `redknot:store_bytes_total{move}`, `written` and
    `read`; `redknot:store_lookups_total{result}`, paths that were asked for, `hit`, `miss`, `late` or `failed`; and
    `redknot:store_refused_total{reason}`, objects that were read and not used.
    """

    def __init__(self) -> None:
        # Imported here for the reason above.
        from prometheus_client import Counter

        def counter(name: str, text: str, label: str) -> Any:
            return Counter(f"redknot:store_{name}", text, labelnames=[label])

        self._counters = {
            "objects": counter("objects", "Objects of the store", "move"),
            "bytes": counter("bytes", "Bytes of objects of the store", "move"),
            "lookups": counter("lookups", "Paths that the store was asked for", "result"),
            "refused": counter("refused", "Objects of the store that were not used", "reason"),
        }
        self._shown: dict[tuple[str, str], int] = {}

    def update(self, status: dict[str, Any]) -> None:
        """Show what the status says of the store."""
        for name, counter in self._counters.items():
            for label, value in status[name].items():
                more = value - self._shown.get((name, label), 0)
                if more:
                    self._shown[name, label] = value
                    counter.labels(label).inc(more)


class TransferMetrics:
    """Counters of what a prefill server sends to decode servers, with the label `head_class`: `redknot:transfer_tokens_total` and
    `redknot:transfer_bytes_total`.
    """

    def __init__(self) -> None:
        # Imported here for the reason above.
        from prometheus_client import Counter

        def counter(name: str, text: str) -> Any:
            return Counter(f"redknot:transfer_{name}", text, labelnames=["head_class"])

        self._tokens = counter("tokens", "Tokens whose KV was sent to a decode server")
        self._bytes = counter("bytes", "Bytes of KV sent to decode servers")

    def count(self, head_class: str, tokens: int, size: int) -> None:
        """Add what was sent of one class. size: bytes."""
        self._tokens.labels(head_class).inc(tokens)
        self._bytes.labels(head_class).inc(size)
