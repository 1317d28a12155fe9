# SPDX-License-Identifier: Apache-2.0
"""Hooks that SGLang 0.5.18 needs beyond those of 0.5.17; they import with either."""

from __future__ import annotations

from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang import active
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.hooks.v0_5_17.refusals import refuse_unsupported
from redknot_sglang.hooks.v0_5_18 import SEAMS, namespace, scheduler
from redknot_sglang.hooks.v0_5_18.refusals import ARGUMENTS
from redknot_sglang.plan.identity import salted
from tests.radix.simulation import Simulation

WINDOW = 8


def hook(area: Any, name: str) -> Any:
    (found,) = [seam.hook for seam in area.SEAMS if seam.target.endswith("." + name)]
    assert any(seam.hook is found for seam in SEAMS)
    return found


def windows_seen(tree: Any) -> tuple[int, int]:
    """What a tree reports while local slots are freed, and behind that."""
    seen: list[int] = []
    batch = SimpleNamespace(tree_cache=tree)
    hook(scheduler, "maybe_evict_swa")(lambda batch: seen.append(batch.tree_cache.sliding_window_size), batch)
    return seen[0], tree.sliding_window_size


def test_local_slots_are_freed_by_what_a_row_sees_and_budgeted_by_what_a_request_holds() -> None:
    tree = Simulation(64, 32, window=WINDOW, sink=2).tree
    budget = tree.sliding_window_size
    assert budget > WINDOW and windows_seen(tree) == (WINDOW, budget)


def test_an_error_leaves_the_budget_as_it_was() -> None:
    tree = Simulation(64, 32, window=WINDOW, sink=2).tree
    budget = tree.sliding_window_size

    def fail(batch: Any) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        hook(scheduler, "maybe_evict_swa")(fail, SimpleNamespace(tree_cache=tree))
    assert tree.sliding_window_size == budget


def test_stock_trees_report_what_they_do() -> None:
    assert windows_seen(SimpleNamespace(sliding_window_size=5)) == (5, 5)


def cut(larger_than_the_pool: bool, tree: Any, running: bool, admitted: bool) -> bool:
    """Whether a prompt that is short of local slots is cut rather than to wait."""
    batch = SimpleNamespace(is_empty=lambda: not running)
    adder = SimpleNamespace(tree_cache=tree, can_run_list=[object()] if admitted else [], running_batch=batch)
    return bool(hook(scheduler, "_swa_req_never_fits")(lambda *_: larger_than_the_pool, adder, 100, 1, 0))


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("admitted", [False, True])
def test_a_prompt_waits_for_slots_only_if_somebody_runs_that_will_give_some(running: bool, admitted: bool) -> None:
    ours, stock = SimpleNamespace(decode_window=40), SimpleNamespace()
    assert cut(False, ours, running, admitted) == (not running and not admitted)
    assert not cut(False, stock, running, admitted), "stock SGLang decides for itself"
    assert cut(True, ours, running, admitted) and cut(True, stock, running, admitted)


def queued(on: bool, extra_key: str | None, salt: str | None) -> tuple[str | None, str | None]:
    """A request's `extra_key` and salt once it is in the queue, for the second time."""
    made = SimpleNamespace(server_args=SimpleNamespace())
    if on:
        active.attach(made.server_args, RedKnotConfig(Path("map.json")))
    params = SimpleNamespace(custom_params=None)
    req = SimpleNamespace(
        extra_key=extra_key, cache_salt=salt, sampling_params=params, origin_input_ids=array("q", [1])
    )
    for _ in range(2):
        hook(namespace, "_add_request_to_queue")(made, req)
    return req.extra_key, req.cache_salt


@pytest.mark.parametrize("extra_key", [None, "tenant"])
def test_a_salt_is_part_of_the_one_namespace_that_our_paths_have(extra_key: str | None) -> None:
    assert queued(True, extra_key, "salt") == (salted(extra_key, "salt"), None)
    assert queued(True, extra_key, None) == (extra_key, None)
    assert queued(False, extra_key, "salt") == (extra_key, "salt")


def test_weights_that_come_after_what_is_derived_from_them_are_refused() -> None:
    with pytest.raises(RedKnotError, match="--startup-weight-load-mode overlap cannot be used with --redknot yet"):
        refuse_unsupported(SimpleNamespace(startup_weight_load_mode="overlap"), None, ARGUMENTS)
