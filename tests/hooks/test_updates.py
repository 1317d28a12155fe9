# SPDX-License-Identifier: Apache-2.0
"""Messages that need an idle scheduler wait for work nobody waits for, and for nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import FlushCacheReqInput, UnloadLoRAAdapterReqInput, UpdateWeightFromDiskReqInput

from redknot_sglang import active
from redknot_sglang.config import Certification, RedKnotConfig
from redknot_sglang.hooks.v0_5_17 import updates
from redknot_sglang.plan.request import RequestState

UPDATE = UpdateWeightFromDiskReqInput(model_path="m")
UNLOAD = UnloadLoRAAdapterReqInput(lora_name="a", lora_id="1")
CERTIFIED = Certification("digest", ("exact", "none"), by_definition=("exact",))


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


@pytest.mark.parametrize("worked", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "update_weights_from_disk",
        "update_weights_from_distributed",
        "update_weights_from_tensor",
        "update_weights_from_ipc",
    ],
)
def test_answers_are_no_longer_certified(name: str, worked: bool) -> None:
    manager = SimpleNamespace(server_args=SimpleNamespace())
    active.attach(manager.server_args, RedKnotConfig(Path("map.json"), certification=CERTIFIED))

    async def update(manager: Any, obj: Any) -> tuple[bool, str]:
        return worked, "message"

    assert asyncio.run(hook(name)(update, manager, "obj")) == (worked, "message")
    config = active.config_of(manager.server_args)
    assert config is not None
    assert config.certification.covers("exact") and config.certification.covers("none") is not worked


def test_what_is_derived_from_weights_follows_them() -> None:
    followed: list[Any] = []
    backend = SimpleNamespace(follow_weights=followed.append)
    runner = SimpleNamespace(attn_backend=backend, model="model")
    shown: list[Any] = []
    stopped: list[str] = []
    scheduler = SimpleNamespace(
        server_args=SimpleNamespace(),
        tp_worker=SimpleNamespace(model_runner=runner),
        tree_cache=SimpleNamespace(
            certification_metric=SimpleNamespace(update=shown.append), store="store", stop_store=stopped.append
        ),
    )
    config = RedKnotConfig(Path("map.json"), certification=CERTIFIED)
    active.attach(scheduler.server_args, config)
    hook("flush_cache_after_weight_update")(None, SimpleNamespace(scheduler=scheduler), "message")
    expected = replace(config, certification=CERTIFIED.after_update())
    assert followed == ["model"] and shown == [expected] and active.config_of(scheduler.server_args) == expected
    assert expected.certification.policies == ("exact",) and expected.certification.digest is None
    assert len(stopped) == 1, "the store is of the weights that the server started with"
