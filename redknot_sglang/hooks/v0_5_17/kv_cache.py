# SPDX-License-Identifier: Apache-2.0
"""SGLang's KV cache construction: sizes of the two pools, and the pool itself."""

from __future__ import annotations

import sys
from typing import Any

from redknot_sglang import active
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.seams import Seam


def _pool_sizes(original: Any, configurator: Any) -> Any:
    config = active.config_of(configurator.server_args)
    if config is None or configurator.is_draft_worker:
        return original(configurator)
    from redknot_sglang.pool.configurator import HeadClassPoolConfigurator

    return HeadClassPoolConfigurator(configurator, config)


def _build_pool(original: Any, self: Any, **kwargs: Any) -> Any:
    if active.config_of(self.server_args) is None:
        return original(self, **kwargs)
    from redknot_sglang.pool.dealing import dealing_of
    from redknot_sglang.pool.head_class_pool import HeadClassPool
    from redknot_sglang.pool.probe import probe_width
    from redknot_sglang.seams.sglang import get_parallel

    # Our backend is built right after the pool, in this process.
    registries.register_attention()
    parallel, dealing = get_parallel(), dealing_of(self.model_config)
    config = active.config_of(self.server_args)
    assert config is not None
    return HeadClassPool(
        size_global=kwargs["full_max_total_num_tokens"],
        size_local=kwargs["swa_max_total_num_tokens"],
        head_map=dealing.heads,
        head_dim=self.model_config.head_dim,
        dtype=self.kv_cache_dtype,
        device=self.device,
        probe_width=probe_width(config, dealing.heads, dealing.group),
        group=dealing.group,
        rank=parallel.attn_tp_rank,
        ranks=parallel.attn_tp_size,
        dealing=dealing,
    )


def _say_why_no_scheduler_is_ready(original: Any, readers: Any, processes: Any) -> Any:
    """A scheduler that refused its memory has printed the reason; a traceback of its end would only hide it."""
    try:
        return original(readers, processes)
    except RuntimeError:
        from redknot_sglang.refuse import has_refused

        for process in processes:
            process.join(timeout=1)
        if any(has_refused(process.exitcode) for process in processes):
            sys.exit("redknot: error: the server did not start, for the reason given above")
        raise


SEAMS = (
    Seam(
        "entrypoints.engine._wait_for_scheduler_ready",
        _say_why_no_scheduler_is_ready,
        "around",
        "sizes that hold no request are refused in one line",
    ),
    Seam(
        "model_executor.pool_configurator.create_memory_pool_configurator",
        _pool_sizes,
        "around",
        "sizes of the global and the local pool",
    ),
    Seam(
        "mem_cache.kv_cache_configurator.KVCacheConfigurator._build_hybrid_swa_kv_pool",
        _build_pool,
        "around",
        "the pool with one width per head class and layer",
    ),
)
