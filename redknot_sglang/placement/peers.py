# SPDX-License-Identifier: Apache-2.0
"""Whether a prefill server and a decode server keep their KV in the same way."""

from __future__ import annotations

from typing import Any

from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.seams.sglang import KVPoll

_OF_PEER = "redknot_refused"


def name_layout(kv_args: Any, pool: Any) -> None:
    """Write how this server keeps its KV, and which head on which rank, into what servers tell each other, where
    SGLang has the KV's dtype.

    kv_args: SGLang's KVArgs. pool: the KV pool; no-op unless it is ours.
    """
    if isinstance(pool, HeadClassPool):
        kind = f"{pool.dtype}".removeprefix("torch.")
        kv_args.kv_cache_dtype_str = f"{kind} per head class, heads {pool.dealing.digest}"


def check_ranks(kv_manager: Any, info: Any) -> None:
    """Raises RuntimeError if the prefill server has another number of tensor-parallel ranks.

    kv_manager: SGLang's KV manager of the decode server. info: what it knows of the prefill server.
    """
    if kv_manager.attn_tp_size != info.attn_tp_size:
        raise RuntimeError(
            f"the prefill server has --tp-size {info.attn_tp_size} and the decode server {kv_manager.attn_tp_size}: a rank's heads have to be "
            "the same on both, start them with the same --tp-size"
        )


def note_refusal(kv_manager: Any, address: str, error: Exception) -> None:
    """A prefill server cannot be this one's peer. SGLang would end the process; here its requests are answered with the reason."""
    reason = str(error)
    if "kv_cache_dtype" in reason:
        reason = (
            f"the prefill server at {address} keeps its KV in another way than this decode server: start both with the same model, --dtype "
            f"and --redknot-head-map, and, of several ranks, with weights that both can deal out ({reason})"
        )
    kv_manager.__dict__.setdefault(_OF_PEER, {})[address] = reason


def end_refused(kv_manager: Any, waiting: dict[str, list[Any]], remaining: list[Any]) -> list[Any]:
    """End the requests for prefill servers that were refused in this pass.

    waiting: SGLang's DecodeRequests by the address of their prefill server. remaining: those that wait on.
    Returns those that still do.
    """
    ended = set()
    for address, reason in kv_manager.__dict__.pop(_OF_PEER, {}).items():
        for decode_req in waiting.get(address, []):
            receiver, room = decode_req.kv_receiver, decode_req.req.bootstrap_room
            if receiver is not None:
                kv_manager.record_failure(room, reason)
                kv_manager.update_status(room, KVPoll.Failed)
                receiver.conclude_state = KVPoll.Failed
            ended.add(id(decode_req))
    return [decode_req for decode_req in remaining if id(decode_req) not in ended]
