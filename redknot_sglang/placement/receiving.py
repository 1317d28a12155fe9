# SPDX-License-Identifier: Apache-2.0
"""The decode server's side: where a prompt's KV is to be written, and how many prompts it takes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redknot_sglang.heads import HeadMap
from redknot_sglang.placement.needed import most_local
from redknot_sglang.placement.slots import by_state, local_slots

# A number of local slots that no request asks for.
UNLIMITED = 1 << 60


def part_receiver(prealloc: Any, decode_req: Any) -> None:
    """Have a request's receiver say where the KV of each head class goes.

    prealloc: SGLang's DecodePreallocQueue. decode_req: its DecodeRequest, whose receiver was just made.
    """
    receiver, req = decode_req.kv_receiver, decode_req.req
    # As for senders; this call is made once.
    send = receiver.send_metadata

    def send_classes(kv_indices: Any, aux_index: Any = None, state_indices: Any = None, **rest: Any) -> None:
        receiver.__dict__.pop("send_metadata", None)
        local = local_slots(prealloc.token_to_kv_pool_allocator, prealloc.req_to_token_pool, req, len(kv_indices))
        send(kv_indices, aux_index, by_state(prealloc.kv_manager.kv_args.state_types, local), **rest)

    receiver.send_metadata = send_classes


def local_slots_of(req: Any, head_map: HeadMap) -> int:
    """Local slots that a request holds at most, its answer included."""
    return most_local(len(req.origin_input_ids) + req.sampling_params.max_new_tokens, head_map)


def local_room(prealloc: Any, head_map: HeadMap, count_retracted: bool) -> int:
    """Local slots that no request will ever need that the server has taken.

    Nothing else has local slots here: a decode server has no prefix cache. So a request that is admitted by this never waits for
    one, whatever the others do.

    count_retracted: whether requests that were retracted, and come back before new ones are taken, count.
    """
    reqs = list(_taken(prealloc))
    if count_retracted:
        reqs += prealloc.retracted_queue
    # A request may be in two of the lists.
    held = sum(local_slots_of(req, head_map) for req in {id(req): req for req in reqs}.values())
    return int(prealloc.token_to_kv_pool_allocator.size_swa) - held


def has_room_for_one(prealloc: Any, head_map: HeadMap, extra: int, count_retracted: bool) -> bool:
    """Whether one request more can be taken, however long it is. extra: requests that were taken in this pass."""
    return local_room(prealloc, head_map, count_retracted) >= (extra + 1) * most_local(UNLIMITED, head_map)


def _taken(prealloc: Any) -> Iterator[Any]:
    """Requests with slots: those whose KV is on its way, those that wait to run, and those that run."""
    scheduler = prealloc.scheduler
    for batch in (scheduler.running_batch, scheduler.last_batch):
        yield from [] if batch is None else batch.reqs
    yield from scheduler.waiting_queue
    yield from (decode_req.req for decode_req in prealloc.transfer_queue.queue)
