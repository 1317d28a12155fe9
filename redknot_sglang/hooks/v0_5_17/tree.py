# SPDX-License-Identifier: Apache-2.0
"""The prefix cache of a scheduler, put together: the tree, and what listens to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from redknot_sglang import active
from redknot_sglang.refuse import one_line


def build_tree(context: Any) -> Any:
    """The prefix cache for SGLang's `TreeCacheBuildContext`; a cache without reuse if the radix cache is disabled.

    Beside it, as its attributes for the hooks: `reuse`, the admission of segmented requests, and `tiers`, where its KV lies and goes,
    unless the cache is without reuse; `transfers`, what was sent to decode servers, None where nothing is sent; and
    `certification_metric`, None without metrics.
    """
    from redknot_sglang.pool.sizing import free_interval
    from redknot_sglang.radix.cache import HeadClassRadixCache
    from redknot_sglang.reuse.admission import SegmentAdmission
    from redknot_sglang.seams.sglang import envs, get_parallel
    from redknot_sglang.serve.metrics import (
        CertificationMetric,
        ClassMetrics,
        SegmentMetrics,
        StoreMetrics,
        TierMetrics,
        TransferMetrics,
    )
    from redknot_sglang.serve.report import Reports
    from redknot_sglang.serve.tiers import TierFigures
    from redknot_sglang.serve.transfers import TransferFigures

    pool = context.params.token_to_kv_pool_allocator.get_kvcache()
    cost = pool.bytes_per_slot
    facts = context.tp_worker.model_runner.attn_backend.facts
    config = active.config_of(context.server_args)
    metered = bool(context.params.enable_metrics)
    if not envs.SGLANG_SWA_EVICTION_INTERVAL.is_set():
        envs.SGLANG_SWA_EVICTION_INTERVAL.set(free_interval(pool.draft))
    decodes = context.server_args.disaggregation_mode == "decode"
    # Ranks compute and send shares of the same rows: one of them counts for all.
    counts = metered and get_parallel().tp_rank == 0

    def weights() -> str:
        config = active.config_of(context.server_args)
        assert config is not None
        return config.certification.weights

    tree: Any
    if context.disable_radix_cache:
        from redknot_sglang.radix.chunk_cache import HeadClassChunkCache

        tree = HeadClassChunkCache(context.params)
        tree.listeners = (Reports(tree, None if decodes else facts.arithmetic, prefills=not decodes, weights=weights),)
    else:
        tree = HeadClassRadixCache(context.params, facts.arithmetic and facts.arithmetic.cost)
        if context.enable_hierarchical_cache:
            _add_host_tier(tree, context)
        tree.reuse = SegmentAdmission(tree, facts)
        classes = ClassMetrics(tree.token_to_kv_pool_allocator) if metered else None
        segments = SegmentMetrics() if counts else None
        stored = StoreMetrics() if counts and tree.store is not None else None
        tree.tiers = TierFigures(tree, cost, TierMetrics() if counts else None, stored)
        tree.tier_listeners = (tree.tiers,)
        tree.ages.told = tree.tiers.kv_left
        tree.listeners = (tree.reuse, Reports(tree, facts.arithmetic, classes, segments, weights=weights), tree.tiers)
    tree.transfers = None
    if context.server_args.disaggregation_mode == "prefill":
        tree.transfers = TransferFigures(cost, TransferMetrics() if counts else None)
    tree.certification_metric = CertificationMetric(config) if config is not None and metered else None
    return tree


def _add_host_tier(tree: Any, context: Any) -> None:
    """Give the tree host memory and what copies to it and back, and the store behind it. A machine without enough memory, and a
    store that cannot be used, are refused in one line.
    """
    from redknot_sglang.hooks.v0_5_17.stored import open_store
    from redknot_sglang.pool.host_copies import HostStack
    from redknot_sglang.pool.sizing import PoolSlots
    from redknot_sglang.pool.start_sizes import StartSizes
    from redknot_sglang.seams.sglang import register_stack_strategy

    config, server_args = active.config_of(context.server_args), context.server_args
    assert config is not None
    allocator = tree.token_to_kv_pool_allocator
    on_device = PoolSlots(allocator.size_full, allocator.size_swa)
    with one_line(server_args.dp_size > 1):
        slots = StartSizes(server_args, context.model_config, config).of_host(server_args, on_device)
        # The last one registered is asked first.
        register_stack_strategy(HostStack(slots))
        # SGLang's own way to a store is not taken: it names tokens of one tenant like those of another.
        without_store = SimpleNamespace(**{**vars(server_args), "hicache_storage_backend": None})
        tree.init_hicache(without_store, context.params)
        if server_args.hicache_storage_backend is not None:
            tree.store = open_store(context, tree)
