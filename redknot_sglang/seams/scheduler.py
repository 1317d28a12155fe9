# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler: state for `/redknot/status`, and sinks in its memory check."""

from __future__ import annotations

from typing import Any

from redknot_sglang.seams import Seam, active


def _add_status(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    if active.config_of(scheduler.server_args) is None:
        return
    from redknot_sglang.serve.status import status_of

    result.internal_state["redknot"] = status_of(scheduler.tree_cache, scheduler.token_to_kv_pool_allocator)


def _count_sinks(result: tuple[int, int], checker: Any, *args: Any, **kwargs: Any) -> tuple[int, int] | None:
    """The memory check takes everything before a request's frontier for freed; its own sinks are not.

    A request owns sinks only while its prompt is shorter than the sink or the prefix cache is off: else the tree does.
    """
    if active.config_of(checker.server_args) is None:
        return None
    running, last = checker.get_running_batch(), checker.get_last_batch()
    batches = [last] if running is None or running is last else [last, running]
    kept = sum(
        max(0, min(req.swa_evict_floor, req.kv.swa_evicted_seqlen) - req.cache_protected_len)
        for batch in batches
        for req in batch.reqs
        if req.kv is not None
    )
    return result[0], result[1] + kept


SEAMS = (
    Seam("sglang.srt.managers.scheduler.Scheduler.get_internal_state", _add_status, "after", "/redknot/status"),
    Seam(
        "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker._get_total_uncached_sizes",
        _count_sinks,
        "after",
        "sinks that a running request owns count as used local slots",
    ),
)
