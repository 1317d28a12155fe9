# SPDX-License-Identifier: Apache-2.0
"""The host tier. SGLang 0.5.23 takes its settings from the process, makes room in one function more, names layers and copies in another
way, and copies by itself what a node lacks on the host.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController as _Controller
from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import StackBuildResult as _Result
from sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler import build_pool_entry as _pool_entry
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache as _Tree
from sglang.srt.runtime_context import get_memory


def build_pool_entry(*, transfer_layer_num: int, **kwargs: Any) -> Any:
    """One class's pools at both ends. transfer_layer_num: layers. kwargs: SGLang's."""
    return _pool_entry(transfer_layer_id_max=transfer_layer_num, **kwargs)


def StackBuildResult(*, transfer_layer_num: int, **kwargs: Any) -> Any:  # noqa: N802
    """What was built for a host tier. transfer_layer_num: layers, which the controller knows. kwargs: SGLang's.

    SGLang would look for host pools by what the device's pool declares, which one of two head classes cannot.
    """
    return _Result(pool_declarations=(), **kwargs)


class HybridCacheController(_Controller):
    """The base of our controller. transfer_layer_num: layers. args, kwargs: SGLang's."""

    # Ours is asked for it by name; SGLang's own is what the surface has.
    parse_storage_backend_extra_config = staticmethod(_Controller.parse_storage_backend_extra_config)

    def __init__(self, *args: Any, transfer_layer_num: int, **kwargs: Any) -> None:
        super().__init__(*args, transfer_layer_id_max=transfer_layer_num, **kwargs)


class HostTier(_Tree):
    """The part of our trees that knows it."""

    local_heads: Any
    # Of the call to make room that is under way, what `evict_for_alloc` was told besides; None in one of `evict`.
    _told: dict[str, Any] | None = None

    def init_hicache(self, server_args: Any, params: Any) -> None:
        """Build the host tier with these arguments, which may differ from those that the process has published."""
        given = {name: getattr(server_args, name) for name in ("hicache_storage_backend", "hicache_write_policy")}
        with get_memory().override(**given):
            super().init_hicache(server_args, params)

    def attach_storage_backend(self, *args: Any, **kwargs: Any) -> tuple[bool, str]:
        """Refuses a store while the server runs: SGLang would attach its own way to one, which names tokens of one tenant like those of
        another. Returns False, and what to do.
        """
        return False, "with --redknot a store is there from the start: start the server with --hicache-storage-backend"

    def detach_storage_backend(self) -> tuple[bool, str]:
        """Refuses to take the store away. Returns False, and what to do."""
        return False, "with --redknot a store stays: start the server without --hicache-storage-backend"

    def evict_for_alloc(self, params: Any, **kwargs: Any) -> Any:
        """Make room for what is about to be allocated: `evict`, so that ours hear of it, with SGLang's other end of the work."""
        self._told = kwargs
        return self.evict(params)

    def evict(self, params: Any) -> Any:
        """Make room on the device."""
        told, self._told = self._told, None
        return super().evict(params) if told is None else super().evict_for_alloc(params, **told)

    def lock(self, node_id: int, skip_lock_components: Any = ()) -> Any:
        """Lock a path. SGLang's admission also locks what it is going to load, which has no local slots yet."""
        heads = self.local_heads
        is_cold = self.cache_controller is not None and heads.cold_above(self.tree_core.node_by_id(node_id))
        with heads.scope.within(**({"over_dead": True} if is_cold else {})):
            return super().lock(node_id, skip_lock_components)

    def _track_write_through_node(self, node_id: int, lock_params: Any, publish_node_ids: Any = None) -> None:
        super()._track_write_through_node(node_id, lock_params, publish_node_ids or [node_id])
