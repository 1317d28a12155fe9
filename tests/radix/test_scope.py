# SPDX-License-Identifier: Apache-2.0
"""What calls into the tree mean lasts as long as its block, however that ends."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.radix.scope import Meaning, Scope
from tests.radix.simulation import Simulation
from tests.versions import IS_ADAPTED


def test_blocks_nest_and_give_back_what_was_in_force() -> None:
    scope, plan = Scope(), Plan(((1, 3),), parse_repair("none"))
    with scope.within(plan=plan, span=7):
        with scope.within(whole=True, span=None):
            assert scope.now == Meaning(plan, whole=True)
        assert scope.now == Meaning(plan, span=7)
        with pytest.raises(KeyError), scope.within(own_path=True, over_dead=True):
            assert scope.now == Meaning(plan, span=7, own_path=True, over_dead=True)
            raise KeyError
        assert scope.now == Meaning(plan, span=7)
    assert scope.now == Meaning()


@pytest.mark.parametrize(
    ("inner", "call"),
    [
        ("match_prefix", lambda simulation, req: simulation.tree.lock_path(array("q", range(9)), None, True)),
        ("inc_lock_ref", lambda simulation, req: simulation.tree.lock_path(array("q", range(9)), None, True)),
        ("cache_unfinished_req", lambda simulation, req: simulation.tree.cache_unfinished_req(req, chunked=True)),
        ("cache_finished_req", lambda simulation, req: simulation.finish(req)),
    ],
)
def test_a_call_that_fails_leaves_no_meaning_behind(inner: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(64, 32, window=8, sink=2)
    simulation.prefill(simulation.admit(range(9)), 9, finish=True)
    req, scope = simulation.admit(range(20, 40)), simulation.tree.local_heads.scope
    req.redknot.plan, req.redknot.whole = Plan(((1, 3),), parse_repair("none")), inner != "inc_lock_ref"
    met: list[Meaning] = []

    def fail(*args: Any, **kwargs: Any) -> None:
        met.append(scope.now)
        raise RuntimeError("in the middle")

    if inner == "inc_lock_ref":
        monkeypatch.setattr(simulation.tree, "match_prefix", lambda params: _Found())
    if IS_ADAPTED and inner.startswith("cache_"):
        # Both are one function there.
        inner = "checkpoint_into_tree"
    monkeypatch.setattr(UnifiedRadixCache, inner, fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        call(simulation, req)
    assert met[0] != Meaning() and scope.now == Meaning()


class _Found:
    """A match of nine tokens."""

    device_indices, last_device_node = range(9), None
