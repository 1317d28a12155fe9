# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler: state for `/redknot/status`, and sinks in its memory check."""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.plan.request import state_of
from redknot_sglang.plan.spans import clip
from redknot_sglang.seams import Seam


def _add_status(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    config = active.config_of(scheduler.server_args)
    if config is None:
        return
    from redknot_sglang.serve.status import status_of

    forwards = scheduler.tp_worker.model_runner.attn_backend.forwards.status()
    cache, allocator = scheduler.tree_cache, scheduler.token_to_kv_pool_allocator
    result.internal_state["redknot"] = status_of(config, cache, allocator, forwards)


def _count_local_slots(result: tuple[int, int], checker: Any, *args: Any, **kwargs: Any) -> tuple[int, int] | None:
    """The memory check takes everything before a request's frontier for freed, and everything behind it for held.

    Its own sinks before the frontier are held; rows of segments behind it may have no local slot.

    A request owns sinks only while its prompt is shorter than the sink or the prefix cache is off: else the tree does.
    """
    if not hasattr(checker.tree_cache, "local_window"):
        return None
    running, last = checker.get_running_batch(), checker.get_last_batch()
    batches = [last] if running is None or running is last else [last, running]
    kept = sum(
        max(0, min(req.swa_evict_floor, req.kv.swa_evicted_seqlen) - req.cache_protected_len)
        for batch in batches
        for req in batch.reqs
        if req.kv is not None
    )
    return result[0], result[1] + kept - sum(
        _dead(req) for batch in batches for req in batch.reqs if req.kv is not None
    )


def _dead(req: Any) -> int:
    """Positions of a segmented request that have no local slot because no row sees them there."""
    owned = max(req.cache_protected_len, req.kv.swa_evicted_seqlen), req.kv.kv_allocated_len
    return sum(end - start for start, end in clip(state_of(req).dead, *owned))


def _free_outside_window(original: Any, batch: Any, req: Any, pre_len: int) -> None:
    """The window that the cache reports to the scheduler is what a sequence may hold, not what a row sees."""
    window = getattr(batch.tree_cache, "local_window", None)
    if window is None:
        original(batch, req, pre_len)
        return
    if state_of(req).whole:
        return
    from redknot_sglang.seams.sglang import free_swa_out_of_window_slots

    free_swa_out_of_window_slots(
        req,
        pre_len,
        sliding_window_size=window,
        page_size=batch.tree_cache.page_size,
        req_to_token_pool=batch.req_to_token_pool,
        token_to_kv_pool_allocator=batch.token_to_kv_pool_allocator,
        is_chunk_cache=batch.tree_cache.is_chunk_cache(),
    )


def _reserve_decode_windows(result: Any, adder: Any, *args: Any, **kwargs: Any) -> None:
    """Keep local slots for the windows that running requests will still fill.

    SGLang reserves that for the requests it admits in the same pass only, and would admit until decoding runs dry and
    has to retract.
    """
    window = getattr(adder.tree_cache, "decode_window", None)
    if window is None or adder.running_batch is None:
        return
    for req in adder.running_batch.reqs:
        if req.kv is None:
            continue
        owned = req.kv.kv_allocated_len - max(req.cache_protected_len, req.kv.swa_evicted_seqlen)
        to_come = req.sampling_params.max_new_tokens - len(req.output_ids) + adder.tree_cache.ahead
        adder.rem_swa_token_offset += max(0, min(to_come, window - owned))


def _admit(original: Any, adder: Any, req: Any, has_chunked_req: bool, *args: Any, **kwargs: Any) -> Any:
    """Admit nobody behind a request whose prompt is not finished by this pass; relocate for segmented requests.

    Without sliding windows an unfinished chunk has always used up the chunk budget, and the scheduler relies on it: it
    remembers one chunked request. A chunk that was cut for want of local slots leaves chunk budget over. The next
    request may then be cut as well and take the first one's place in `new_chunked_req`, after which the first is
    decoded in the middle of its prompt; or a batch without the waiting chunk is counted as one of its chunks.
    """
    if not hasattr(adder.tree_cache, "decode_window"):
        return original(adder, req, has_chunked_req, *args, **kwargs)
    from redknot_sglang.seams.sglang import AddReqResult

    if has_chunked_req or adder.new_chunked_req is not None:
        return AddReqResult.OTHER
    reuse = getattr(adder.tree_cache, "reuse", None)
    if reuse is None:
        return original(adder, req, has_chunked_req, *args, **kwargs)
    return reuse.admit(adder, req, lambda: original(adder, req, has_chunked_req, *args, **kwargs))


SEAMS = (
    Seam("managers.scheduler.Scheduler.get_internal_state", _add_status, "after", "/redknot/status"),
    Seam(
        "managers.scheduler_components.invariant_checker.SchedulerInvariantChecker._get_total_uncached_sizes",
        _count_local_slots,
        "after",
        "local slots that a running request really holds",
    ),
    Seam(
        "managers.schedule_batch.ScheduleBatch._evict_swa",
        _free_outside_window,
        "around",
        "freeing local slots that left the window while decoding",
    ),
    Seam(
        "managers.schedule_policy.PrefillAdder.__init__",
        _reserve_decode_windows,
        "after",
        "admission leaves room for the windows of running requests",
    ),
    Seam(
        "managers.schedule_policy.PrefillAdder.add_one_req",
        _admit,
        "around",
        "a chunk cut for want of local slots must stay the only unfinished prompt; slots of segmented requests",
    ),
)
