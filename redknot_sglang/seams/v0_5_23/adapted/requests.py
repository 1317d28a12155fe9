# SPDX-License-Identifier: Apache-2.0
"""Requests. SGLang 0.5.23 keeps what a request holds in its `kv`, which is always there; our rooms know it by 0.5.17's names.

`install` gives SGLang's classes these names, as properties. SGLang itself uses none of them.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

# Fields of a request that have gone into its `kv`.
_MOVED = ("cache_protected_len", "req_pool_idx", "swa_evict_floor")


def install() -> None:
    """Give requests the names. Raises AttributeError if SGLang uses one of them for something else; idempotent."""
    for name in _MOVED:
        _add(Req, name, _in_kv(name))
    _add(ReqKvInfo, "swa_evicted_seqlen", _evicted)


def _in_kv(name: str) -> property:
    def read(req: Any) -> Any:
        return getattr(req.kv, name)

    def write(req: Any, value: Any) -> None:
        setattr(req.kv, name, value)

    return property(read, write)


def _read_evicted(kv: Any) -> int:
    length: int = kv.get_evicted_seqlen(ComponentType.SWA)
    return length


def _write_evicted(kv: Any, length: int) -> None:
    kv.set_evicted_seqlen(ComponentType.SWA, length)


_evicted = property(_read_evicted, _write_evicted)
_ours: set[tuple[type, str]] = set()


def _add(whole: type, name: str, what: property) -> None:
    if (whole, name) in _ours:
        return
    if hasattr(whole, name):
        raise AttributeError(f"SGLang's {whole.__name__} has a {name} of its own")
    setattr(whole, name, what)
    _ours.add((whole, name))
