# SPDX-License-Identifier: Apache-2.0
"""SGLang's prefill and decode servers: KV goes from one to the other per head class.

What SGLang ships for models with sliding windows is nearly that: full layers' slots of all tokens, and one window of the others.
Local heads need their sinks as well, and with pages of one token SGLang would keep local slots of the whole prompt.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.plan.request import is_isolated, state_of
from redknot_sglang.seams import Seam


def _is_ours(server_args: Any) -> bool:
    return active.config_of(server_args) is not None


def _map_of(prealloc: Any) -> Any:
    """The head map behind SGLang's DecodePreallocQueue; None without RedKnot, and for a map without local heads.

    Both pools of the latter are alike, so that SGLang's accounts of the global one are right for both.
    """
    if not _is_ours(prealloc.scheduler.server_args):
        return None
    head_map = prealloc.token_to_kv_pool.whole_map
    return None if head_map.all_global else head_map


# ---- both ---------------------------------------------------------------------------------------------------------------------


def _name_layout(result: Any, kv_args: Any, token_to_kv_pool: Any, *args: Any, **kwargs: Any) -> None:
    from redknot_sglang.placement.peers import name_layout

    name_layout(kv_args, token_to_kv_pool)


# ---- prefill server -----------------------------------------------------------------------------------------------------------


def _part_sender(result: bool, bootstrap: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    scheduler = bootstrap.scheduler
    if not result or not _is_ours(scheduler.server_args):
        return
    from redknot_sglang.placement.sending import part_sender, send_in_parts
    from redknot_sglang.seams.sglang import FAKE_BOOTSTRAP_HOST

    # Requests to that host have a sender that sends nothing.
    if req.bootstrap_host != FAKE_BOOTSTRAP_HOST:
        send_in_parts(req.disagg_kv_sender.kv_mgr)
        part_sender(scheduler, req, scheduler.tree_cache.transfers)


def _send_chunk(original: Any, scheduler: Any, req: Any, last_chunk: bool = False, end_idx: int | None = None) -> None:
    """An isolated prefill has nobody to send to, and none of the buffers that a request for a decode server has."""
    if not is_isolated(req):
        original(scheduler, req, last_chunk, end_idx)
    elif last_chunk:
        req.disagg_kv_sender.send([])


def _send_before_the_forward(original: Any, scheduler: Any, req: Any) -> None:
    """SGLang sends cached slots while the rest of the prompt is computed. Relocated rows count as cached, and may not be there yet.

    With a host tier cached rows may be on their way from the host.
    """
    if _is_ours(scheduler.server_args):
        if state_of(req).plan is not None or scheduler.enable_hierarchical_cache:
            return
    original(scheduler, req)


def _drop_failed(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """Requests whose decode server died while they waited have left the queue."""
    reuse = getattr(scheduler.tree_cache, "reuse", None)
    if reuse is not None:
        reuse.sources.left_queue(scheduler.waiting_queue)


# ---- decode server ------------------------------------------------------------------------------------------------------------


def _takes_tails(original: Any, prealloc: Any) -> bool:
    """Whether local slots are taken for what the answer needs only; SGLang does so from pages of two tokens on."""
    return _map_of(prealloc) is not None or original(prealloc)


def _tail_length(original: Any, prealloc: Any, seq_len: int) -> int:
    head_map = _map_of(prealloc)
    if head_map is None:
        return int(original(prealloc, seq_len))
    from redknot_sglang.placement.needed import needed_local, size_of

    return size_of(needed_local(seq_len, head_map))


def _required(original: Any, prealloc: Any, req: Any) -> tuple[int, int]:
    """Global slots as SGLang counts them, local ones that the request will hold at most."""
    global_slots, local = original(prealloc, req)
    head_map = _map_of(prealloc)
    if head_map is None:
        return global_slots, local
    from redknot_sglang.placement.receiving import local_slots_of

    return global_slots, local_slots_of(req, head_map)


def _global_budget(
    original: Any, prealloc: Any, *args: Any, count_retracted: bool = True, extra_reserved_reqs: int = 0, **kwargs: Any
) -> int:
    """No global slots either for a request that might run out of local ones."""
    given = {"count_retracted": count_retracted, "extra_reserved_reqs": extra_reserved_reqs}
    budget = int(original(prealloc, *args, **given, **kwargs))
    head_map = _map_of(prealloc)
    if head_map is None:
        return budget
    from redknot_sglang.placement.receiving import has_room_for_one

    return budget if has_room_for_one(prealloc, head_map, extra_reserved_reqs, count_retracted) else min(budget, 0)


def _budgets(
    original: Any,
    prealloc: Any,
    retractable_tokens: int | None = None,
    retractable_swa_tokens: int | None = None,
    count_retracted: bool = True,
) -> tuple[int, int]:
    """SGLang takes it that an answer's local slots grow with it, and would never take one longer than the local pool.

    For new requests `_global_budget` has looked after local slots; those that come back after a retraction are counted here.
    """
    budget, local = original(prealloc, retractable_tokens, retractable_swa_tokens, count_retracted)
    head_map = _map_of(prealloc)
    if head_map is None:
        return budget, local
    from redknot_sglang.placement.receiving import UNLIMITED, local_room

    return budget, UNLIMITED if count_retracted else local_room(prealloc, head_map, count_retracted)


def _take_slots(original: Any, allocator: Any, *, req: Any, fill_len: int, **kwargs: Any) -> Any:
    from redknot_sglang.pool.head_class_pool import HeadClassPool

    if not isinstance(allocator.get_kvcache(), HeadClassPool):
        return original(allocator, req=req, fill_len=fill_len, **kwargs)
    from redknot_sglang.placement.slots import allocate

    return allocate(allocator, req, fill_len)


def _part_receiver(result: Any, prealloc: Any, *args: Any, **kwargs: Any) -> None:
    if _is_ours(prealloc.scheduler.server_args):
        from redknot_sglang.placement.receiving import part_receiver

        part_receiver(prealloc, result)


def _meet(original: Any, kv_manager: Any, bootstrap_addr: str) -> bool:
    """A prefill server that cannot be served with is no reason to end the decode server."""
    if not _is_ours(kv_manager.server_args):
        return bool(original(kv_manager, bootstrap_addr))
    try:
        return bool(original(kv_manager, bootstrap_addr))
    except RuntimeError as error:
        from redknot_sglang.placement.peers import note_refusal

        note_refusal(kv_manager, bootstrap_addr, error)
        return False


def _check_ranks(kv_manager: Any, info: Any) -> None:
    if _is_ours(kv_manager.server_args):
        from redknot_sglang.placement.peers import check_ranks

        check_ranks(kv_manager, info)


def _end_refused(original: Any, prealloc: Any, addr_to_reqs: Any) -> Any:
    ready, remaining = original(prealloc, addr_to_reqs)
    if not _is_ours(prealloc.scheduler.server_args):
        return ready, remaining
    from redknot_sglang.placement.peers import end_refused

    return ready, end_refused(prealloc.kv_manager, addr_to_reqs, remaining)


_QUEUE = "disaggregation.decode.DecodePreallocQueue"
_PREFILL = "disaggregation.prefill.SchedulerDisaggregationPrefillMixin"
_MANAGER = "disaggregation.common.conn.CommonKVManager"

SEAMS = (
    Seam(
        "disaggregation.utils.setup_state_kv_args",
        _name_layout,
        "after",
        "servers with other head maps cannot exchange KV",
    ),
    Seam(
        "disaggregation.prefill.PrefillBootstrapQueue.create_sender",
        _part_sender,
        "after",
        "local heads' sinks and window are sent, and counted, per head class",
    ),
    Seam(f"{_PREFILL}.send_kv_chunk", _send_chunk, "around", "isolated prefills have no decode server"),
    Seam(
        f"{_PREFILL}.maybe_send_cached_prefix_chunk",
        _send_before_the_forward,
        "around",
        "relocated rows are not sent before they are there",
    ),
    Seam(
        f"{_PREFILL}.resolve_waiting_queue_bootstrap",
        _drop_failed,
        "after",
        "locks of waiting segmented requests whose decode server died",
    ),
    Seam(f"{_QUEUE}._uses_swa_tail_prealloc", _takes_tails, "around", "local slots of what the answer needs only"),
    Seam(f"{_QUEUE}._swa_tail_len", _tail_length, "around", "sinks and the window of the row behind the prompt"),
    Seam(f"{_QUEUE}._prealloc_required_tokens", _required, "around", "local slots that a request holds at most"),
    Seam(f"{_QUEUE}._allocatable_token_budgets", _global_budget, "around", "no request may run out of local slots"),
    Seam(
        f"{_QUEUE}._swa_aware_allocatable_token_budgets",
        _budgets,
        "around",
        "local slots do not grow with the answer",
    ),
    Seam(
        "disaggregation.decode.alloc_for_decode_prealloc",
        _take_slots,
        "around",
        "slots of both classes with pages of one token",
    ),
    Seam(
        f"{_QUEUE}._create_receiver_and_enqueue",
        _part_receiver,
        "after",
        "where local heads' sinks and window go",
    ),
    Seam(f"{_MANAGER}.try_ensure_parallel_info", _meet, "around", "a peer that keeps its KV in another way is refused"),
    Seam(f"{_MANAGER}._resolve_rank_mapping", _check_ranks, "before", "so is one with another number of ranks"),
    Seam(f"{_QUEUE}._ensure_prefill_info", _end_refused, "around", "and its requests are answered with the reason"),
)
