# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's scheduler: budgets of the local pool, and rows of segmented requests that have no local slot."""

from __future__ import annotations

from typing import Any

from redknot_sglang.hooks.v0_5_17.scheduler import _dead
from redknot_sglang.plan.request import state_of
from redknot_sglang.seams import Seam

# Attribute of a pass's budget: the adder that it is for.
_ADDER = "redknot_adder"


def _reserve_decode_windows(result: Any, adder: Any, *args: Any, **kwargs: Any) -> None:
    """Of the local pool, leave what running requests have yet to take while they decode (as under 0.5.17)."""
    window = getattr(adder.tree_cache, "decode_window", None)
    if window is None:
        return
    setattr(adder.memory_budget, _ADDER, adder)
    for req in [] if adder.running_batch is None else adder.running_batch.reqs:
        owned = req.kv.kv_allocated_len - max(req.cache_protected_len, req.kv.swa_evicted_seqlen)
        to_come = req.sampling_params.max_new_tokens - len(req.output_ids)
        adder.memory_budget.swa_offset += max(0, min(to_come, window - owned))


def _no_use_in_waiting(original: Any, budget: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a prompt that is short of local slots has to be cut, since waiting would not bring them (as under 0.5.18)."""
    if original(budget, *args, **kwargs):
        return True
    adder = getattr(budget, _ADDER, None)
    if adder is None:
        return False
    from redknot_sglang.reuse.sources import is_idle

    return is_idle(adder)


def _count_dead(result: tuple[int, int], checker: Any, *args: Any, **kwargs: Any) -> tuple[int, int] | None:
    """The memory check takes everything behind a request's frontier for held; rows of segments may have no local slot there."""
    if not hasattr(checker.tree_cache, "local_window"):
        return None
    return result[0], result[1] - sum(_dead(req) for req in checker._requests_owning_rows())


def _keep_whole_paths(original: Any, batch: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    """Nothing of a whole path is freed while it is computed."""
    if hasattr(batch.tree_cache, "local_window") and state_of(req).whole:
        return
    original(batch, req, *args, **kwargs)


SEAMS = (
    Seam(
        "managers.schedule_policy.PrefillAdder.__init__",
        _reserve_decode_windows,
        "after",
        "admission leaves room for the windows of running requests",
    ),
    Seam(
        "mem_cache.prefill_budget.SWAPrefillBudget.swa_never_fits",
        _no_use_in_waiting,
        "around",
        "a request that waits for its own segments' slots would wait for ever",
    ),
    Seam(
        "managers.scheduler_components.invariant_checker.SchedulerInvariantChecker._get_total_uncached_sizes",
        _count_dead,
        "after",
        "local slots that a running request really holds",
    ),
    Seam(
        "managers.schedule_batch.ScheduleBatch._evict_swa",
        _keep_whole_paths,
        "around",
        "whole paths keep all local slots while they are computed",
    ),
)
