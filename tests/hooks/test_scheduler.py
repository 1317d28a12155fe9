# SPDX-License-Identifier: Apache-2.0
"""Local slots while SGLang's own scheduler functions run under our hooks, over the tree and pools of the simulation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

from redknot_sglang.hooks import all_seams
from redknot_sglang.pool.sizing import DECODE_FREE_INTERVAL
from tests.radix.calls import SimulatedRequest
from tests.radix.simulation import Simulation
from tests.versions import before_adapted

# Of 0.5.23 `tests/seams/test_adapted.py` has the same.
pytestmark = before_adapted

WINDOW, SINK = 8, 2
HOOKS = {seam.target.rsplit(".", 1)[1]: seam.hook for seam in all_seams()}


class Decoding:
    """SGLang's batch of one decoding request, as far as freeing local slots looks at it."""

    def __init__(self, simulation: Simulation, req: SimulatedRequest) -> None:
        self.reqs = [SimpleNamespace(**vars(req))]
        self.tree_cache, self.token_to_kv_pool_allocator = simulation.tree, simulation.allocator
        self.req_to_token_pool, self.forward_mode = simulation.rows, ForwardMode.DECODE
        self.forward_iter = 0
        self._req = req

    def step(self) -> None:
        """What SGLang does before a decode step."""
        self.forward_iter += 1
        # The same attributes, with what SGLang counts on a request.
        self.reqs = [SimpleNamespace(**vars(self._req), seqlen=len(self._req.ids), decode_batch_idx=self._req.decoded)]
        free = ScheduleBatch.maybe_evict_swa
        hook = HOOKS.get("maybe_evict_swa")
        if hook is None:
            free(self)
        else:
            hook(free, self)

    def _evict_swa(self, req: Any, pre_len: int) -> None:
        HOOKS["_evict_swa"](None, self, req, pre_len)


def held(simulation: Simulation, req: SimulatedRequest) -> int:
    """Local slots that a request holds beside its prompt's."""
    owned = simulation.rows.req_to_token[req.req_pool_idx, req.cache_protected_len : req.computed].long()
    return int((simulation.pool.translate_loc_from_full_to_swa(owned) > 0).sum())


@pytest.fixture(autouse=True)
def _sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", str(DECODE_FREE_INTERVAL))
    set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", device="cpu"))


@pytest.mark.parametrize("prompt", [1, 20, 100])
def test_decoding_holds_no_more_than_is_budgeted_and_no_less_than_a_row_sees(prompt: int) -> None:
    simulation = Simulation(1000, 400, WINDOW, SINK)
    req = simulation.admit(range(prompt))
    simulation.prefill(req, prompt)
    batch, most = Decoding(simulation, req), 0
    for token in range(300):
        batch.step()
        # Fails if a row would read a slot that was freed too early.
        simulation.decode(req, 1000 + token, maintain=False)
        most = max(most, held(simulation, req))
    assert WINDOW < most <= simulation.tree.decode_window + SINK
    simulation.finish(req)
    simulation.check_conservation()


def test_the_memory_check_counts_a_request_s_own_sinks() -> None:
    req = SimpleNamespace(swa_evict_floor=4, cache_protected_len=1, kv=SimpleNamespace(swa_evicted_seqlen=9))
    req.redknot = SimpleNamespace(dead=[])
    req.kv.kv_allocated_len = 12
    batch = SimpleNamespace(reqs=[req])
    checker = SimpleNamespace(
        get_running_batch=lambda: batch, get_last_batch=lambda: batch, tree_cache=SimpleNamespace(local_window=WINDOW)
    )
    count = HOOKS["_get_total_uncached_sizes"]
    assert count((11, 3), checker) == (11, 6)
    checker.tree_cache = SimpleNamespace()
    assert count((11, 3), checker) is None, "stock SGLang's own figures stay"
