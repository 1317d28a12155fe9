# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler: what its prefix cache holds, for `/redknot/inspect`."""

from __future__ import annotations

from typing import Any

from redknot_sglang import active


def inventory_of(scheduler: Any) -> dict[str, Any]:
    """The scheduler's answer: its `status`, and of the `cache` what `radix/inventory.py` reads, None without a prefix cache."""
    from redknot_sglang.radix.inventory import Inventory
    from redknot_sglang.serve.status import status_of

    config, tree = active.config_of(scheduler.server_args), scheduler.tree_cache
    assert config is not None
    forwards = scheduler.tp_worker.model_runner.attn_backend.forwards.status()
    return {
        "status": status_of(config, tree, scheduler.token_to_kv_pool_allocator, forwards),
        "cache": None if tree.is_chunk_cache() else Inventory(tree, config.inspect_texts).read(),
    }
