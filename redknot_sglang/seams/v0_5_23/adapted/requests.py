# SPDX-License-Identifier: Apache-2.0
"""Requests and budgets. SGLang 0.5.23 keeps what a request holds in its `kv`, which is always there, and what a pass may still admit in
a `memory_budget`; our rooms know both by 0.5.17's names.

`install` gives SGLang's classes these names, as properties. SGLang itself uses none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

# Fields of a request that have gone into its `kv`.
_IN_KV = ("cache_protected_len", "req_pool_idx", "swa_evict_floor")
# Fields of an adder, and their names in its budget.
_IN_BUDGET = {
    "rem_total_token_offset": "total_offset",
    "cur_rem_token_offset": "current_offset",
    "rem_swa_token_offset": "swa_offset",
    "rem_swa_tokens": "remaining_swa",
}
# Attribute of a request: slots that stand in for its prefix until they are in its row (`given_prefix`).
_GIVEN = "redknot_prefix"


@dataclass(frozen=True)
class _Range:
    """Which of a request's tokens the next forward computes."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many."""
        return self.end - self.start


def install(tree: Any) -> None:
    """Give requests, adders and schedulers the names. Raises AttributeError if SGLang uses one of them for something else; idempotent.

    tree: of this process, the prefix cache.
    """
    _add(Scheduler, "ps", property(lambda scheduler: get_parallel()))
    for name in _IN_KV:
        _add(Req, name, _inside("kv", name))
    for name, inner in _IN_BUDGET.items():
        _add(PrefillAdder, name, _inside("memory_budget", inner))
    _add(ReqKvInfo, "swa_evicted_seqlen", property(_read_evicted, _write_evicted))
    _add(Req, "extend_range", property(lambda req: _Range(req.prefix_len, req.extend_end)))
    _add(Req, "set_extend_range", _set_extend_range)
    _add(
        Req,
        "prefix_indices",
        property(lambda req: _read_prefix(tree, req), lambda req, slots: _write_prefix(tree, req, slots)),
    )


def given_prefix(req: Any) -> Tensor | None:
    """Global slots that a request was given in the place of those along its path, int64 [n]; None if there are none."""
    given = vars(req).get(_GIVEN)
    return given[1] if given is not None and given[0] == req.last_node and len(given[1]) == req.prefix_len else None


def _inside(whole: str, name: str) -> property:
    def read(outer: Any) -> Any:
        return getattr(getattr(outer, whole), name)

    def write(outer: Any, value: Any) -> None:
        setattr(getattr(outer, whole), name, value)

    return property(read, write)


def _read_evicted(kv: Any) -> int:
    length: int = kv.get_evicted_seqlen(ComponentType.SWA)
    return length


def _write_evicted(kv: Any, length: int) -> None:
    kv.set_evicted_seqlen(ComponentType.SWA, length)


def _set_extend_range(req: Any, start: int, end: int) -> None:
    assert start == req.prefix_len, f"the prefix has {req.prefix_len} tokens, and rows are to begin at {start}"
    req.extend_end = end


def _read_prefix(tree: Any, req: Any) -> Tensor:
    slots: Tensor
    if req.kv.holds_kv:
        slots = tree.req_to_token_pool.req_to_token[req.kv.req_pool_idx, : req.prefix_len].long()
    elif req.prefix_len == 0:
        slots = torch.empty(0, dtype=torch.int64, device=tree.device)
    else:
        slots = tree.prefix_device_indices(req)
    return slots


def _write_prefix(tree: Any, req: Any, slots: Tensor) -> None:
    req.prefix_len = len(slots)
    if req.kv.holds_kv:
        tree.req_to_token_pool.req_to_token[req.kv.req_pool_idx, : len(slots)] = slots.int()
    else:
        vars(req)[_GIVEN] = req.last_node, slots


_ours: set[tuple[type, str]] = set()


def _add(whole: type, name: str, what: Any) -> None:
    if (whole, name) in _ours:
        return
    if hasattr(whole, name):
        raise AttributeError(f"SGLang's {whole.__name__} has a {name} of its own")
    setattr(whole, name, what)
    _ours.add((whole, name))
