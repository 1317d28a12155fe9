# SPDX-License-Identifier: Apache-2.0
"""The server's state per head class, as `GET /redknot/status` and `/server_info` show it."""

from __future__ import annotations

from typing import Any

from redknot_sglang import __version__
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.heads import HeadMap
from redknot_sglang.versions import sglang_version


def status_of(config: RedKnotConfig, tree: Any, allocator: Any, forwards: dict[str, Any]) -> dict[str, Any]:
    """The server's state as JSON types.

    It has the versions, the head map in a few numbers, the certificate, how requests with segments are read, which
    heads each tensor-parallel rank serves (None for one rank), slots and bytes of each head class, the tokens in the
    prefix cache, how prefill ran, what was copied between device and host (None if the prefix cache is
    off), and what was sent to decode servers (None unless this is a prefill server). All
    tensor-parallel ranks have the same number of slots; the bytes of a slot are those on all ranks together.

    config: the server's settings.
    tree: the prefix cache.
    allocator: SGLang's allocator of both pools.
    forwards: `PrefillForwards.status`.
    """
    pool = allocator.get_kvcache()
    return {
        "versions": {"redknot": __version__, "sglang": sglang_version()},
        "head_map": head_map_summary(pool.whole_map),
        "certificate": config.certification.status(config.policy),
        "segments": segment_settings(config),
        "ranks": pool.dealing.status() if pool.dealing.ranks > 1 else None,
        "classes": {
            "global": _class_state(
                allocator.size_full, allocator.full_available_size(), pool.bytes_per_slot.global_slot
            ),
            "local": _class_state(allocator.size_swa, allocator.swa_available_size(), pool.bytes_per_slot.local),
        },
        "tree": tree_sizes(tree),
        "prefill_forwards": forwards,
        "tiers": None if tree.is_chunk_cache() else tree.tiers.status(),
        "transfer": None if tree.transfers is None else tree.transfers.status(),
    }


def segment_settings(config: RedKnotConfig) -> dict[str, str | None]:
    """What a request's segments are and who shares them, where the request does not say so: a router reads it here."""
    return {
        "mode": config.mode,
        "repair": config.repair,
        "lead": config.segment_lead,
        "separator": config.separator,
    }


def _class_state(slots: int, free: int, bytes_per_slot: int) -> dict[str, int]:
    return {"slots": slots, "used": slots - free, "bytes_per_slot": bytes_per_slot}


def head_map_summary(head_map: HeadMap) -> dict[str, Any]:
    """The map in a few numbers; `fingerprint` identifies it."""
    return {
        "layers": head_map.num_layers,
        "kv_heads": head_map.num_kv_heads,
        "global_share": head_map.global_share,
        "window": head_map.window,
        "sink": head_map.sink,
        "fingerprint": head_map.fingerprint,
    }


def tree_sizes(tree: Any) -> dict[str, dict[str, int]]:
    """Tokens in the prefix cache by head class: `evictable`, and `protected` by the locks of running requests."""
    if tree.is_chunk_cache():
        return {name: {"evictable": 0, "protected": 0} for name in ("global", "local")}
    return {
        "global": {"evictable": int(tree.full_evictable_size()), "protected": int(tree.full_protected_size())},
        "local": {"evictable": int(tree.swa_evictable_size()), "protected": int(tree.swa_protected_size())},
    }
