# SPDX-License-Identifier: Apache-2.0
"""The calls of a scheduler on the tree for one request, in the order of the installed SGLang: what `Simulation` is made of."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams
from sglang.srt.mem_cache.common import free_swa_out_of_window_slots
from torch import Tensor

from redknot_sglang.plan.request import RequestState


@dataclass(eq=False)
class SimulatedRequest:
    """What the cache reads and writes on SGLang's Req."""

    origin_input_ids: array[int]
    req_pool_idx: int
    output_ids: array[int] = field(default_factory=lambda: array("q"))
    kv: Any = None
    computed: int = 0
    decoded: int = 0
    cache_protected_len: int = 0
    last_node: Any = None
    prefix_indices: Any = None
    swa_uuid_for_lock: int | None = None
    swa_prefix_lock_released: bool = False
    swa_evict_floor: int = 0
    skip_lock_node_ids: dict[Any, Any] = field(default_factory=dict)
    redknot: RequestState = field(default_factory=RequestState)
    extra_key: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    session: Any = None
    finished_reason: Any = None
    cached_tokens: int = 0
    customized_info: Any = None

    @property
    def ids(self) -> array[int]:
        """Prompt and answer."""
        return self.origin_input_ids + self.output_ids

    def get_fill_ids(self) -> array[int]:
        """Those that have KV."""
        return self.ids[: self.computed]


class Calls:
    """SGLang 0.5.17's and 0.5.18's.

    tree: the prefix cache. rows: SGLang's table of requests' slots.
    """

    request: type[SimulatedRequest] = SimulatedRequest

    def __init__(self, tree: Any, rows: Any) -> None:
        self.tree, self.rows = tree, rows

    def start(self, req: Any, match: Any) -> None:
        """A request is admitted with what was found of it."""
        req.last_node = match.last_device_node
        lock = self.tree.inc_lock_ref(req.last_node)
        req.swa_uuid_for_lock, req.skip_lock_node_ids = lock.swa_uuid_for_lock, {}
        req.swa_prefix_lock_released = False
        req.kv = ReqKvInfo(kv_allocated_len=len(match.device_indices), swa_evicted_seqlen=0)

    def start_from_host(self, req: Any, match: Any) -> Tensor:
        """The same of one that may have something on the host, which is loaded; returns its slots, int64 [n]."""
        tree, more, slots = self.tree, req.__dict__, match.device_indices
        req.last_node = match.last_device_node
        more["swa_host_hit_length"], more["mamba_host_hit_length"] = match.swa_host_hit_length, 0
        more["mamba_pool_idx"] = None
        # As SGLang's admission: nothing goes while room is made.
        first, lock = req.last_node, tree.inc_lock_ref(req.last_node)
        if match.host_hit_length or match.swa_host_hit_length:
            params: Any = InitLoadBackParams(match.best_match_node, match.host_hit_length, req=req)
            loaded, req.last_node = tree.init_load_back(params)
            slots = torch.cat([slots, loaded])
        own = tree.inc_lock_ref(req.last_node)
        tree.dec_lock_ref(first, lock.to_dec_params())
        req.swa_uuid_for_lock, req.skip_lock_node_ids = own.swa_uuid_for_lock, {}
        # As SGLang does when it retracts a request: the lock is a new one.
        req.swa_prefix_lock_released = False
        req.kv = ReqKvInfo(kv_allocated_len=len(slots), swa_evicted_seqlen=0)
        return slots

    def cache_chunk(self, req: Any) -> None:
        """A part of its prompt has been computed, or all of it."""
        self.tree.cache_unfinished_req(req, chunked=req.computed < len(req.ids))

    def free_window(self, req: Any, window: int) -> None:
        """A token is going to be decoded: what left the window goes."""
        free_swa_out_of_window_slots(
            req,
            len(req.ids) - 1,
            sliding_window_size=window,
            page_size=1,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.tree.token_to_kv_pool_allocator,
        )

    def release_tail(self, req: Any) -> None:
        """Decoding has moved one window past the prompt."""
        if not req.swa_prefix_lock_released and req.swa_uuid_for_lock is not None:
            self.tree.dec_swa_lock_only(req.last_node, req.swa_uuid_for_lock, req.skip_lock_node_ids)
            req.swa_prefix_lock_released = True

    def end(self, req: Any, insert: bool) -> None:
        """A request ends, or without `insert` is aborted or retracted."""
        self.tree.cache_finished_req(req, is_insert=insert, kv_len_to_handle=req.computed)
