# SPDX-License-Identifier: Apache-2.0
"""The local slots of a request whose KV travels: read on a prefill server, taken on a decode server."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redknot_sglang.placement.needed import needed_local, size_of, tail_start
from redknot_sglang.radix.local_locks import unmap
from redknot_sglang.seams.sglang import ReqKvInfo, StateType

# As they go over the wire.
Slots = NDArray[np.int32]


def local_slots(allocator: Any, req_to_token_pool: Any, req: Any, length: int) -> Slots:
    """Local slots of the positions that the answer needs, in the order of `needed_local`: int32 [positions].

    Both sides ask for them by the same function, so that what one side writes is what the other one means.

    allocator: SGLang's allocator of both pools. req_to_token_pool: SGLang's, with the slots of the request.
    req: SGLang's Req.
    length: tokens of its prompt.
    None at all if the map has no local heads. Raises RuntimeError if one of these positions has no local slot.
    """
    head_map = allocator.get_kvcache().whole_map
    spans = needed_local(length, head_map)
    if head_map.all_global or not spans:
        return np.empty(0, dtype=np.int32)
    row = req_to_token_pool.req_to_token[req.req_pool_idx]
    slots = torch.cat([row[start:end] for start, end in spans]).long()
    found: Slots = allocator.full_to_swa_index_mapping[slots].cpu().numpy().astype(np.int32)
    if (found <= 0).any():
        raise RuntimeError(
            f"{int((found <= 0).sum())} of {len(found)} positions that the answer needs have no local KV"
        )
    return found


def by_state(state_types: list[Any], local: Slots) -> list[Slots | None]:
    """SGLang's list of what travels beside the global slots, by kind of state: ours is that of sliding windows."""
    return [local if state is StateType.SWA else None for state in state_types]


def allocate(allocator: Any, req: Any, length: int) -> Tensor | None:
    """Take the slots into which a prompt's KV will be written: a global one for each token, local ones where the answer needs them.

    allocator: SGLang's allocator of both pools.
    req: SGLang's Req, which is told what it owns.
    length: tokens that have KV: the prompt, and after a retraction all of the answer but its last token.
    Returns the global slots, int64 [length]; None, with nothing taken, if there are too few of a class.
    """
    head_map = allocator.get_kvcache().whole_map
    spans = needed_local(length, head_map)
    count = size_of(spans)
    if length > allocator.full_available_size() or count > allocator.swa_available_size():
        return None
    slots = allocator.full_attn_allocator.alloc(length).long()
    local = allocator.swa_attn_allocator.alloc(count)
    mapping = allocator.full_to_swa_index_mapping
    unmap(mapping, slots)
    if count:
        mapping[torch.cat([slots[start:end] for start, end in spans])] = local.to(mapping.dtype)
    if req.kv is None:
        req.kv = ReqKvInfo(kv_allocated_len=length, swa_evicted_seqlen=0)
    req.kv.kv_allocated_len = length
    # Before this position only sinks have local slots, and decoding frees from here on.
    req.swa_evict_floor = 0 if head_map.all_global else head_map.sink
    req.kv.swa_evicted_seqlen = tail_start(length, head_map)
    return slots
