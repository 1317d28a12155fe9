# SPDX-License-Identifier: Apache-2.0
"""Arguments that cannot work together with RedKnot under SGLang 0.5.23 yet, beside those that cannot under 0.5.18."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17.refusals import Arguments
from redknot_sglang.hooks.v0_5_18 import refusals

_AGAIN = ("enable_hierarchical_cache", "hicache_storage_backend")
ARGUMENTS: Arguments = (
    *(row for row in refusals.ARGUMENTS if row[0] not in _AGAIN),
    (
        "hicache_storage_backend",
        (None, "file"),
        "other stores than files were not tried with SGLang 0.5.23; use file, or SGLang 0.5.17",
    ),
    (
        "hicache_host_memory_mode",
        ("cache",),
        "host memory would be a buffer on the way to a store, and evicted KV would not wait in it; use cache",
    ),
    ("tokenizer_worker_num", (1,), "plugins are not loaded in additional tokenizer workers of SGLang 0.5.23; use one"),
    ("attn_dp_size", (1,), "data-parallel attention shards KV heads in another way"),
)
