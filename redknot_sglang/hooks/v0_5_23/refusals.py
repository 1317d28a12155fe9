# SPDX-License-Identifier: Apache-2.0
"""Arguments that cannot work together with RedKnot under SGLang 0.5.23 yet, beside those that cannot under 0.5.18."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17.refusals import Arguments
from redknot_sglang.hooks.v0_5_18 import refusals

ARGUMENTS: Arguments = (
    *refusals.ARGUMENTS,
    ("attn_dp_size", (1,), "data-parallel attention shards KV heads in another way"),
)
