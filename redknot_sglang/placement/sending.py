# SPDX-License-Identifier: Apache-2.0
"""The prefill server's side: what a request's sender is given to send, and the check that the decode server means the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from redknot_sglang.placement.slots import Slots, by_state, local_slots
from redknot_sglang.seams.sglang import KVPoll, StateType


class Counter(Protocol):
    """Who counts what is sent."""

    def sent(self, global_tokens: int, local_tokens: int) -> None:
        """KV of so many tokens of each head class is on its way."""


# Mooncake refuses more than 2,048 pieces for one peer over TCP, and for a while everything that comes after.
MOST_PIECES = 1024


def send_in_parts(kv_manager: Any) -> None:
    """Have Mooncake get only so many pieces of memory at a time as it takes. With pages of one token a prompt can be very many.

    kv_manager: SGLang's; no-op unless it is that of Mooncake, and when called again.
    """
    # This is no seam: the module imports prometheus_client, which must not happen before SGLang has chosen its folder.
    send = getattr(type(kv_manager), "_transfer_data", None)
    if send is None or "_transfer_data" in kv_manager.__dict__:
        return

    def send_parts(session: str, pieces: Sequence[Any]) -> int:
        parts = (pieces[at : at + MOST_PIECES] for at in range(0, len(pieces), MOST_PIECES))
        # 0 is success.
        return next((failed for part in parts if (failed := int(send(kv_manager, session, part)))), 0)

    kv_manager._transfer_data = send_parts


def part_sender(scheduler: Any, req: Any, counter: Counter) -> None:
    """Have a request's sender send KV per head class: global slots as SGLang says, local ones that the answer needs.

    scheduler: SGLang's Scheduler. req: its Req, whose sender was just made.
    """
    sender: Any = req.disagg_kv_sender
    # SGLang's classes keep no request, so the call is replaced on the object; until the last chunk, which is the last call.
    send = sender.send

    def send_classes(kv_indices: Any, state_indices: Any = None, num_kv_tokens: Any = None) -> None:
        if state_indices is None:
            counter.sent(len(kv_indices), 0)
            send(kv_indices, None, num_kv_tokens=num_kv_tokens)
            return
        sender.__dict__.pop("send", None)
        pool = scheduler.req_to_token_pool
        try:
            local = local_slots(scheduler.token_to_kv_pool_allocator, pool, req, len(req.origin_input_ids))
        except RuntimeError as error:
            _fail(sender, str(error))
            return
        problem = _mismatch(sender, local)
        if problem is not None:
            _fail(sender, problem)
            return
        counter.sent(len(kv_indices), len(local))
        send(kv_indices, by_state(sender.kv_mgr.kv_args.state_types, local), num_kv_tokens=num_kv_tokens)

    sender.send = send_classes


def _targets(sender: Any) -> Iterator[Any]:
    """What the decode server's ranks have said about where the KV goes."""
    infos = sender.kv_mgr.transfer_infos.get(sender.bootstrap_room, {})
    return (info for info in infos.values() if not info.is_dummy)


def _mismatch(sender: Any, local: Slots) -> str | None:
    """Why what is sent is not what the decode server has room for; None if it is. SGLang would send what fits, silently."""
    kinds = sender.kv_mgr.kv_args.state_types
    for info in _targets(sender):
        lists = dict(zip(kinds, info.dst_state_indices, strict=False))
        asked = len(info.dst_kv_indices), len(lists.get(StateType.SWA, ()))
        if asked != (sender.num_kv_indices, len(local)):
            return (
                f"the prefill server has KV of {sender.num_kv_indices} tokens in the global class and {len(local)} in the local one, "
                f"the decode server wants that of {asked[0]} and {asked[1]}: send both the same prompt and options"
            )
    return None


def _fail(sender: Any, reason: str) -> None:
    """End the transfer on both sides. Here the scheduler finds that out when it asks next, frees everything and answers an error."""
    kv_manager, room = sender.kv_mgr, sender.bootstrap_room
    for info in list(_targets(sender)):
        kv_manager.sync_status_to_decode_endpoint(
            info.endpoint, info.dst_port, room, KVPoll.Failed, kv_manager.attn_tp_rank
        )
    kv_manager.record_failure(room, reason)
    kv_manager.update_status(room, KVPoll.Failed)
