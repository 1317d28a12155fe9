# SPDX-License-Identifier: Apache-2.0
"""Hooks on functions of SGLang 0.5.17."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17 import (
    arguments,
    choosing,
    disaggregation,
    eagle,
    http,
    kv_cache,
    model_config,
    new_weights,
    ngram,
    prefill_graphs,
    preload,
    scheduler,
    segments,
    tokenizer,
    updates,
    weights,
)
from redknot_sglang.seams import Seam

# In the order in which a start-up reaches them.
_AREAS = (
    arguments,
    model_config,
    weights,
    kv_cache,
    choosing,
    prefill_graphs,
    ngram,
    eagle,
    scheduler,
    segments,
    preload,
    updates,
    new_weights,
    disaggregation,
    tokenizer,
    http,
)
SEAMS: tuple[Seam, ...] = tuple(seam for area in _AREAS for seam in area.SEAMS)
