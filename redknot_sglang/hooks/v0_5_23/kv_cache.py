# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's KV cache construction: as 0.5.17's, with the arguments that are in force."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from redknot_sglang import active
from redknot_sglang.hooks.v0_5_17 import kv_cache as before
from redknot_sglang.seams import Seam
from redknot_sglang.seams.v0_5_23.arguments import resolved


def _pool_sizes(original: Any, configurator: Any) -> Any:
    if active.config_of(configurator.server_args) is None:
        return original(configurator)
    known = SimpleNamespace(
        server_args=resolved(configurator.server_args),
        model_config=configurator.model_config,
        kv_cache_dtype=configurator.kv_cache_dtype,
        is_draft_worker=configurator.is_draft_worker,
    )
    return before._pool_sizes(original, known)


SEAMS = (
    Seam(
        "model_executor.pool_configurator.create_memory_pool_configurator",
        _pool_sizes,
        "around",
        "sizes of the global and the local pool",
    ),
)
