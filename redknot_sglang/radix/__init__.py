# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: SGLang's radix tree, whose nodes have global slots for all tokens and local slots for some.

A path from the root spells a prompt; where a node ends is a *boundary*. A node is *live* if its tokens have local slots,
and a *tombstone* if not. A *tail* is the run of live tokens that ends at a boundary. A prefix can be reused up to a
boundary that has a tail of one window, because local heads of the next row see that window and the *sink* (the first
tokens of the prompt), nothing else.
"""

from __future__ import annotations

from typing import Any


def build_tree(context: Any) -> Any:
    """The prefix cache of a server; under `--disable-radix-cache` one that reuses nothing.

    context: SGLang's TreeCacheBuildContext.
    """
    from redknot_sglang import active
    from redknot_sglang.pool.sizing import DECODE_FREE_INTERVAL
    from redknot_sglang.radix.cache import HeadClassChunkCache, HeadClassRadixCache
    from redknot_sglang.seams.sglang import envs
    from redknot_sglang.serve.metrics import CertificationMetric

    config = active.config_of(context.server_args)
    metric = CertificationMetric(config) if config is not None and context.params.enable_metrics else None
    if not envs.SGLANG_SWA_EVICTION_INTERVAL.is_set():
        envs.SGLANG_SWA_EVICTION_INTERVAL.set(DECODE_FREE_INTERVAL)
    tree = (HeadClassChunkCache if context.disable_radix_cache else HeadClassRadixCache)(context.params)
    tree.certification_metric = metric
    return tree
