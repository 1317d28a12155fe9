# SPDX-License-Identifier: Apache-2.0
"""Messages that need an idle scheduler wait for work nobody waits for, and for nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import (
    FlushCacheReqInput,
    ReleaseMemoryOccupationReqInput,
    UnloadLoRAAdapterReqInput,
    UpdateWeightFromDiskReqInput,
)

from redknot_sglang.hooks.v0_5_17 import updates
from redknot_sglang.plan.request import RequestState

UPDATE = UpdateWeightFromDiskReqInput(model_path="m")
UNLOAD = UnloadLoRAAdapterReqInput(lora_name="a", lora_id="1")


def hook(name: str) -> Any:
    (found,) = [seam.hook for seam in updates.SEAMS if seam.target.endswith("." + name)]
    return found


def request(finished: bool = False, ends: Any = None, **marks: Any) -> Any:
    return SimpleNamespace(finished=lambda: finished, to_finish=ends, **marks)


def batch(*reqs: Any) -> Any:
    return SimpleNamespace(reqs=list(reqs))


class Scheduler:
    """What the hooks read of SGLang's."""

    def __init__(self, *running: Any, waiting: tuple[Any, ...] = (), adapters: tuple[str, ...] = ()) -> None:
        isolated = SimpleNamespace(uses_adapter=lambda name: name in adapters)
        self.tree_cache = SimpleNamespace(reuse=SimpleNamespace(sources=SimpleNamespace(isolated=isolated)))
        self.running_batch, self.last_batch, self.chunked_req = batch(*running), None, None
        self.waiting_queue, self._engine_paused = list(waiting), False

    def is_fully_idle(self) -> bool:
        return not self.running_batch.reqs and not self.waiting_queue


ISOLATED = request(redknot=RequestState(identity=(None, b"")))


@pytest.mark.parametrize(
    ("running", "waits"),
    [((), False), ((ISOLATED,), True), ((request(finished=True),), True), ((request(ends="abort"),), True)],
)
def test_an_update_waits_for_what_ends_by_itself(running: tuple[Any, ...], waits: bool) -> None:
    scheduler, handled = Scheduler(*running), list[list[Any]]()
    hold = hook("process_input_requests")
    hold(lambda scheduler, messages: handled.append(messages), scheduler, [UPDATE, "later"])
    assert handled == ([["later"]] if waits else [[UPDATE], ["later"]])
    scheduler.running_batch = batch()
    hold(lambda scheduler, messages: handled.append(messages), scheduler, [])
    assert sum(messages == [UPDATE] for messages in handled) == 1
    # Once.
    hold(lambda scheduler, messages: handled.append(messages), scheduler, [])
    assert handled[-1] == []


@pytest.mark.parametrize("scheduler", [Scheduler(request()), Scheduler(ISOLATED, waiting=(request(),))])
def test_an_update_beside_clients_is_as_in_stock(scheduler: Scheduler) -> None:
    handled: list[list[Any]] = []
    hook("process_input_requests")(lambda scheduler, messages: handled.append(messages), scheduler, [UPDATE])
    assert handled == [[UPDATE]]


def test_a_release_of_memory_waits_as_well() -> None:
    """SGLang ends the scheduler that is told to while it works."""
    scheduler, handled, message = Scheduler(ISOLATED), list[list[Any]](), ReleaseMemoryOccupationReqInput()
    hold = hook("process_input_requests")
    hold(lambda scheduler, messages: handled.append(messages), scheduler, [message])
    assert handled == []
    scheduler.running_batch = batch()
    hold(lambda scheduler, messages: handled.append(messages), scheduler, [])
    assert handled == [[message]]


def test_a_paused_scheduler_holds_nothing_back() -> None:
    scheduler, handled = Scheduler(ISOLATED), list[list[Any]]()
    scheduler._engine_paused = True
    hook("process_input_requests")(lambda scheduler, messages: handled.append(messages), scheduler, [UPDATE])
    assert handled == [[UPDATE]]


def test_an_adapter_is_unloaded_when_no_segment_is_computed_with_it() -> None:
    # Clients of other adapters go on.
    handled: list[list[Any]] = []
    for adapters, there in ((("1",), 0), (("2",), 1), ((), 2)):
        scheduler = Scheduler(request(), adapters=adapters)
        hook("process_input_requests")(lambda scheduler, messages: handled.append(messages), scheduler, [UNLOAD])
        assert handled == [[UNLOAD]] * there


@pytest.mark.parametrize(
    ("running", "given", "expected"),
    [
        ((ISOLATED,), None, updates._FLUSH_TIMEOUT),
        ((request(finished=True),), 0.0, updates._FLUSH_TIMEOUT),
        ((ISOLATED,), 3.0, 3.0),
        ((request(),), None, None),
        ((), None, None),
    ],
)
def test_a_flush_waits_where_no_client_does(running: tuple[Any, ...], given: float | None, expected: Any) -> None:
    scheduler = Scheduler(*running)
    wrapper, message = SimpleNamespace(_is_fully_idle=scheduler.is_fully_idle), FlushCacheReqInput(timeout_s=given)
    assert hook("handle")(lambda wrapper, message: message.timeout_s, wrapper, message) == expected
