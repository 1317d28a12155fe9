# SPDX-License-Identifier: Apache-2.0
"""Components of the tree. SGLang 0.5.23 hands its list of actions, and results of inserts, to more of their functions.

Two layers are around our classes. The outer one (`outward`) takes SGLang's calls and makes 0.5.17's of them; the inner one, from which
ours derive, takes 0.5.17's calls of `super()` and makes SGLang's of them. In between the list is carried by the component.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import EvictLayer
from sglang.srt.mem_cache.unified_cache.components.base import next_component_uuid as _next_uuid
from sglang.srt.mem_cache.unified_cache.components.full import FullComponent as _Full
from sglang.srt.mem_cache.unified_cache.components.swa import SWAComponent as _SWA


def next_component_uuid() -> int:
    """A new mark for the end of a lock of the local class."""
    uuid: int = _next_uuid(ComponentType.SWA)
    return uuid


class _Inner:
    """What both inner layers do: give SGLang the list that the call under way came with."""

    _actions: list[Any] | None = None

    @contextmanager
    def carrying(self, actions: list[Any]) -> Iterator[None]:
        """Within this block calls of SGLang's get this list."""
        before, self._actions = self._actions, actions
        try:
            yield
        finally:
            self._actions = before

    def evict_component(
        self, node: Any, device_frees: Any, host_frees: Any, target: Any = EvictLayer.DEVICE
    ) -> tuple[int, int]:
        """Take a node's KV from the device or the host."""
        assert self._actions is not None
        freed: tuple[int, int] = super().evict_component(  # type: ignore[misc]
            node, device_frees, host_frees, self._actions, target=target
        )
        return freed

    def _evict_device_next_node(self, tracker: Any, device_frees: Any, host_frees: Any) -> Any:
        assert self._actions is not None
        return super()._evict_device_next_node(tracker, device_frees, host_frees, self._actions)  # type: ignore[misc]

    def drive_host_eviction(self, num_tokens: int, tracker: Any, device_frees: Any, host_frees: Any) -> None:
        """Evict from the host until so many slots are free."""
        assert self._actions is not None
        super().drive_host_eviction(num_tokens, tracker, device_frees, host_frees, self._actions)  # type: ignore[misc]


class FullComponent(_Inner, _Full):
    """The base of our global class's component."""


class SWAComponent(_Inner, _SWA):
    """The base of our local class's component."""

    credits_unlocked_only = False

    def needs_incremental_backup(self, node: Any) -> bool:
        """Whether SGLang is to copy local KV to the host that has come to an old node. Ours is copied when its path has been cached."""
        return False


class _Outer:
    """What both outer layers do."""

    def evict_component(
        self, node: Any, device_frees: Any, host_frees: Any, cache_actions: list[Any], target: Any = EvictLayer.DEVICE
    ) -> tuple[int, int]:
        with self.carrying(cache_actions):  # type: ignore[attr-defined]
            freed: tuple[int, int] = super().evict_component(node, device_frees, host_frees, target=target)  # type: ignore[misc]
        return freed

    def _evict_device_next_node(
        self, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: list[Any]
    ) -> Any:
        with self.carrying(cache_actions):  # type: ignore[attr-defined]
            return super()._evict_device_next_node(tracker, device_frees, host_frees)  # type: ignore[misc]

    def drive_host_eviction(
        self, num_tokens: int, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: list[Any]
    ) -> None:
        with self.carrying(cache_actions):  # type: ignore[attr-defined]
            super().drive_host_eviction(num_tokens, tracker, device_frees, host_frees)  # type: ignore[misc]


class _OuterLocal(_Outer):
    """Functions of the local class's component that SGLang calls in another way than 0.5.17 did."""

    def prepare_for_caching_req(self, req: Any, insert_params: Any, token_ids_len: int, is_finished: bool) -> None:
        insert_params.chunked = self.cache.caching_chunk  # type: ignore[attr-defined]
        super().prepare_for_caching_req(req, insert_params, token_ids_len, is_finished)  # type: ignore[misc]

    def update_component_on_insert_overlap(
        self,
        node: Any,
        prefix_len: int,
        total_prefix_len: int,
        value_slice: Any,
        params: Any,
        result: Any,
        cache_actions: list[Any],
    ) -> int:
        consumed_from: int = super().update_component_on_insert_overlap(  # type: ignore[misc]
            node, prefix_len, total_prefix_len, value_slice, params, cache_actions
        )
        return consumed_from

    def recover_after_unevict(
        self,
        node: Any,
        prefix_len: int,
        total_prefix_len: int,
        params: Any,
        result: Any,
        cache_actions: list[Any],
    ) -> None:
        super().recover_after_unevict(node, prefix_len, total_prefix_len, params, cache_actions)  # type: ignore[misc]

    def acquire_component_lock(self, node: Any, result: Any, lock_host: bool = False) -> Any:
        noted = SimpleNamespace()
        super().acquire_component_lock(node, noted, lock_host)  # type: ignore[misc]
        uuid = noted.swa_uuid_for_host_lock if lock_host else noted.swa_uuid_for_lock
        result.set_lock_uuid(ComponentType.SWA, uuid, lock_host=lock_host)
        return result

    def release_component_lock(self, node: Any, params: Any, lock_host: bool = False) -> None:
        uuid = params.get_lock_uuid(ComponentType.SWA, lock_host=lock_host)
        noted = SimpleNamespace(**{"swa_uuid_for_host_lock" if lock_host else "swa_uuid_for_lock": uuid})
        super().release_component_lock(node, noted, lock_host)  # type: ignore[misc]

    def release_window_lock(
        self, node: Any, uuid: int | None, device_frees: Any, host_frees: Any, cache_actions: list[Any]
    ) -> None:
        super().release_window_lock(node, uuid, device_frees, host_frees)  # type: ignore[misc]


@cache
def outward(component: type) -> type:
    """One of our component classes as SGLang's tree calls it."""
    outer = _OuterLocal if issubclass(component, SWAComponent) else _Outer
    return type(component.__name__, (outer, component), {})
