# SPDX-License-Identifier: Apache-2.0
"""The same of SGLang 0.5.23, as its schedulers call the tree: what a request holds is in its `kv`, and `release_kv_cache` frees it."""

from __future__ import annotations

from array import array
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_LENGTH, ReqKvInfo
from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams
from sglang.srt.runtime_context import get_context
from torch import Tensor

from redknot_sglang.seams.v0_5_23.adapted import requests
from tests.radix.calls import Calls, SimulatedRequest


class KvRequest(SimulatedRequest):
    """What the cache reads and writes on a Req of this version."""

    # As `adapted/requests.py` has them on SGLang's Req.
    req_pool_idx: Any = requests._inside("kv", "req_pool_idx")
    cache_protected_len: Any = requests._inside("kv", "cache_protected_len")
    swa_evict_floor: Any = requests._inside("kv", "swa_evict_floor")
    lock: Any = None
    rid = "simulated"
    session_id: str | None = None
    swa_host_hit_length = mamba_host_hit_length = 0
    kv_rotation_base: int | None = None
    swa_branching_seqlen: int | None = None

    def __init__(self, prompt: array[int], row: int, extra_key: str | None = None) -> None:
        self.kv: Any = ReqKvInfo(req_pool_idx=row)
        super().__init__(prompt, row, kv=self.kv, extra_key=extra_key)

    @property
    def full_untruncated_fill_ids(self) -> array[int]:
        """Prompt and answer."""
        return self.ids

    @property
    def extend_end(self) -> int:
        """Position behind the last row that was computed."""
        return self.computed

    def finished(self) -> bool:
        """Whether it has ended, so that it is cached for the last time."""
        return self.finished_reason is not None


class KvCalls(Calls):
    """SGLang 0.5.23's."""

    request = KvRequest

    def __init__(self, tree: Any, rows: Any) -> None:
        super().__init__(tree, rows)
        requests.install(tree)
        if not get_context().is_config_namespace_published("memory"):
            # A tree's host tier reads settings of the process.
            get_context().override_server_args(device="cpu").install()

    def start(self, req: Any, match: Any) -> None:
        floor = req.swa_evict_floor
        req.kv = ReqKvInfo(req_pool_idx=req.req_pool_idx, kv_allocated_len=len(match.device_indices))
        req.swa_evict_floor = floor
        req.last_node = match.last_device_node
        req.lock = self.tree.lock(req.last_node)

    def start_from_host(self, req: Any, match: Any) -> Tensor:
        tree, floor, loaded = self.tree, req.swa_evict_floor, 0
        req.kv = ReqKvInfo(req_pool_idx=req.req_pool_idx)
        req.swa_evict_floor, req.last_node = floor, match.last_device_node
        req.swa_host_hit_length, req.mamba_host_hit_length = match.swa_host_hit_length, 0
        first = tree.lock(req.last_node)
        if match.host_hit_length or match.swa_host_hit_length:
            best = match.best_match_node
            on_host, on_device = tree.inc_host_lock_ref(best).to_dec_params(), tree.lock(best)
            loaded, req.last_node = tree.init_load_back(InitLoadBackParams(best, match.host_hit_length, req=req))
            tree.unlock(on_device)
            tree.dec_host_lock_ref(best, on_host)
        req.lock = tree.lock(req.last_node)
        tree.unlock(first)
        req.kv.kv_allocated_len = match.device_prefix_len + loaded
        slots: Tensor = tree.path_device_indices(req.last_node)[: req.kv.kv_allocated_len]
        return slots

    def cache_chunk(self, req: Any) -> None:
        self.tree.checkpoint(req, up_to=req.computed)

    def free_window(self, req: Any, window: int) -> None:
        self.tree.evict_sliding_windows(req, len(req.ids) - 1)

    def release_tail(self, req: Any) -> None:
        self.tree.release_swa_prefix_lock(req)

    def end(self, req: Any, insert: bool) -> None:
        """As `mem_cache.common.release_kv_cache`, which also asks for settings of a whole server."""
        if insert:
            req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
            self.tree.checkpoint(req, up_to=req.computed)
        self.tree.free_kv_row(req.kv, [(req.cache_protected_len, req.computed)])
        self.tree.unlock(req.lock)
        req.lock = None
        self.tree.on_release(req, checkpointed=insert)
        req.kv.mark_kv_released()
