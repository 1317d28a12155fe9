# SPDX-License-Identifier: Apache-2.0
"""An answer of `GET /redknot/inspect.json`: the cache is read from a tree that had some traffic, its figures are made up."""

from __future__ import annotations

from typing import Any

from redknot_sglang.plan.identity import WHOLE
from redknot_sglang.radix.inventory import Inventory, mark_document
from tests.radix.host_simulation import HostSimulation
from tests.radix.test_host_tier import push_out, visit

SECRET = "<ACME & Sons>"
CLASSES = {"global": 0, "local": 0}


def make_cache(texts: bool = False, ranks: int = 1, host: bool = True, off: bool = False) -> dict[str, Any]:
    """The answer of a server. texts: tenants and texts are shown. host: it has a host tier. off: it has no prefix cache."""
    return {
        "version": "1.2.3",
        "texts": texts,
        "ranks": [
            {"rank": rank, "status": _status(host and not off, off), "cache": None if off else _cache(texts)}
            for rank in range(ranks)
        ],
    }


def _cache(texts: bool) -> dict[str, Any]:
    simulation = HostSimulation((600, 600), (1000, 600), 8, 2, eviction="redknot")
    cold, shared = list(range(500, 560)), list(range(100))
    visit(simulation, cold, tenant="two" + WHOLE)
    (end,) = [node for node, path, _ in simulation.nodes() if len(path) == 60]
    mark_document(end)
    push_out(simulation)
    for number in range(3):
        visit(simulation, [*shared, *[1000 + number] * 40], tenant=SECRET)
        simulation.notice()
    visit(simulation, list(range(300, 330)))
    simulation.notice()
    found = Inventory(simulation.tree, texts).read()
    for piece in found["pieces"]:
        if piece["end"] == 60:
            piece["classes"]["global"]["stored"] = 60
        if texts:
            piece["text"] = f"<b>tokens {piece['tokens'][:3]}</b>"
    return found


def _status(host: bool, off: bool) -> dict[str, Any]:
    def state(slots: int, used: int) -> dict[str, int]:
        return {"slots": slots, "used": used, "bytes_per_slot": 18_432}

    tiers = {
        "host": {"global": state(2000, 1500), "local": state(900, 90)} if host else None,
        "hit_tokens": {"device": {"global": 12_345, "local": 600}, "host": CLASSES},
        "copied_bytes": {"backed_up": {"global": 5_000_000, "local": 1}, "loaded_back": CLASSES},
        "evicted_tokens": {"demoted": {"global": 7, "local": 8}, "cooled": {"global": 4_321, "local": 2}},
        "age_at_eviction": {
            "device": {"global": {"pieces": 3, "mean": 1_234}, "local": {"pieces": 0, "mean": None}},
            "host": {"global": {"pieces": 0, "mean": None}, "local": {"pieces": 0, "mean": None}},
        },
        "loads": 5,
        "load_seconds": 0.25,
    }
    return {
        "classes": {"global": state(1000, 750), "local": state(500, 100)},
        "tiers": None if off else tiers,
    }
