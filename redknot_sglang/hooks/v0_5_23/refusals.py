# SPDX-License-Identifier: Apache-2.0
"""Arguments that cannot work together with RedKnot under SGLang 0.5.23 yet, beside those that cannot under 0.5.18."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17.refusals import Arguments
from redknot_sglang.hooks.v0_5_18 import refusals

ARGUMENTS: Arguments = (
    *refusals.ARGUMENTS,
    ("tokenizer_worker_num", (1,), "plugins are not loaded in additional tokenizer workers of SGLang 0.5.23; use one"),
    ("attn_dp_size", (1,), "data-parallel attention shards KV heads in another way"),
)
