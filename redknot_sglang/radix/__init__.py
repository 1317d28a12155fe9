# SPDX-License-Identifier: Apache-2.0
"""The radix tree with head classes: global slots for all tokens, local slots for sinks and window tails.

Vocabulary: a *tail* is the run of live local slots that ends at a node boundary; a prefix can be reused up to a
boundary that has one, because local heads of the next row look back one window and at the sinks, nowhere else.
"""

from __future__ import annotations

from typing import Any


def build_tree(context: Any) -> Any:
    """The prefix cache for a `TreeCacheBuildContext`; a cache without reuse if the radix cache is disabled."""
    from sglang.srt.environ import envs

    from redknot_sglang import active
    from redknot_sglang.pool.sizing import DECODE_FREE_INTERVAL
    from redknot_sglang.radix.cache import HeadClassChunkCache, HeadClassRadixCache
    from redknot_sglang.serve.metrics import CertificationMetric

    config = active.config_of(context.server_args)
    metric = CertificationMetric(config) if config is not None and context.params.enable_metrics else None
    if not envs.SGLANG_SWA_EVICTION_INTERVAL.is_set():
        envs.SGLANG_SWA_EVICTION_INTERVAL.set(DECODE_FREE_INTERVAL)
    tree = (HeadClassChunkCache if context.disable_radix_cache else HeadClassRadixCache)(context.params)
    tree.certification_metric = metric
    return tree
