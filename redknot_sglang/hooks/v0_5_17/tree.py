# SPDX-License-Identifier: Apache-2.0
"""The prefix cache of a scheduler, put together: the tree, and what listens to it."""

from __future__ import annotations

from typing import Any

from redknot_sglang import active


def build_tree(context: Any) -> Any:
    """The prefix cache for SGLang's `TreeCacheBuildContext`; a cache without reuse if the radix cache is disabled.

    Beside it, as its attributes for the hooks: `reuse`, the admission of segmented requests, unless the cache is without
    reuse; and `certification_metric`, None without metrics.
    """
    from redknot_sglang.pool.sizing import DECODE_FREE_INTERVAL
    from redknot_sglang.radix.cache import HeadClassChunkCache, HeadClassRadixCache
    from redknot_sglang.reuse.admission import SegmentAdmission
    from redknot_sglang.seams.sglang import envs, get_parallel
    from redknot_sglang.serve.metrics import CertificationMetric, ClassMetrics, SegmentMetrics
    from redknot_sglang.serve.report import Reports

    facts = context.tp_worker.model_runner.attn_backend.facts
    config = active.config_of(context.server_args)
    metered = bool(context.params.enable_metrics)
    if not envs.SGLANG_SWA_EVICTION_INTERVAL.is_set():
        envs.SGLANG_SWA_EVICTION_INTERVAL.set(DECODE_FREE_INTERVAL)
    tree: Any
    if context.disable_radix_cache:
        tree = HeadClassChunkCache(context.params)
        tree.listeners = (Reports(tree, facts.arithmetic),)
    else:
        tree = HeadClassRadixCache(context.params, facts.arithmetic and facts.arithmetic.cost)
        tree.reuse = SegmentAdmission(tree, facts)
        classes = ClassMetrics(tree.token_to_kv_pool_allocator) if metered else None
        # Ranks compute shares of the same rows: one of them counts for all.
        segments = SegmentMetrics() if metered and get_parallel().tp_rank == 0 else None
        tree.listeners = (tree.reuse, Reports(tree, facts.arithmetic, classes, segments))
    tree.certification_metric = CertificationMetric(config) if config is not None and metered else None
    return tree
