# SPDX-License-Identifier: Apache-2.0
"""Hooks on functions of SGLang 0.5.23, as far as they differ from those of 0.5.18."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17 import disaggregation, prefill_graphs
from redknot_sglang.hooks.v0_5_18 import SEAMS as BEFORE
from redknot_sglang.hooks.v0_5_23 import arguments, kv_cache, model_config, scheduler
from redknot_sglang.hooks.v0_5_23.engine import offer_keywords as fill
from redknot_sglang.seams import Seam, changed_seams

# What is refused with this version needs no hooks; some functions are gone, and their work is done in `seams/v0_5_23/adapted/`.
GONE = (
    *(seam.target for seam in (*prefill_graphs.SEAMS, *disaggregation.SEAMS)),
    "server_args.ServerArgs.__init__",
    "managers.scheduler.Scheduler._abort_on_waiting_timeout",
    "managers.schedule_batch.ScheduleBatch.maybe_evict_swa",
    "managers.schedule_policy.PrefillAdder._swa_req_never_fits",
)
SEAMS: tuple[Seam, ...] = changed_seams(
    BEFORE, (*arguments.SEAMS, *model_config.SEAMS, *kv_cache.SEAMS, *scheduler.SEAMS), gone=GONE
)

__all__ = ["GONE", "SEAMS", "fill"]
