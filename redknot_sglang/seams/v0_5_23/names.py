# SPDX-License-Identifier: Apache-2.0
"""Where SGLang 0.5.23 has names that 0.5.18 has elsewhere. Names that `adapted/` stands in for are not here.

These imports are for readers and tests; `surface.py` says where a name lies, and nothing is imported until it is asked for.
"""
# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host.group import HostPoolGroup
    from sglang.srt.mem_cache.unified_cache.components.base import (
        BASE_COMPONENT_TYPE,
        CacheTransferPhase,
        EvictLayer,
        LRURefreshPhase,
    )
