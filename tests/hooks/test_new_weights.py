# SPDX-License-Identifier: Apache-2.0
"""After an update, and after one that failed halfway, the server says what its weights are, and reuses nothing of those before."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.io_struct import (
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightsFromTensorReqInput,
)
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

from redknot_sglang import active
from redknot_sglang.config import STARTED, UNKNOWN, UPDATED, Certification, RedKnotConfig
from redknot_sglang.heads import HeadMap
from redknot_sglang.hooks.v0_5_17 import new_weights
from redknot_sglang.pool.head_class_pool import HeadClassPool
from tests.versions import before_adapted

CERTIFIED = Certification("digest", ("exact", "none"), by_definition=("exact",))
DISK = UpdateWeightFromDiskReqInput(model_path="m")
TENSOR = UpdateWeightsFromTensorReqInput(serialized_named_tensors=[])


def hook(target: str) -> Any:
    (found,) = [seam.hook for seam in new_weights.SEAMS if seam.target.endswith(target)]
    return found


class Model:
    """What SGLang's updates call of a model."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load_weights(self, weights: str) -> str:
        self.loaded.append(weights)
        return "loaded"


class Updater:
    """What the hooks read of SGLang's: a scheduler that can update its weights."""

    def __init__(self, certification: Certification = CERTIFIED) -> None:
        self.followed: list[Any] = []
        self.shown: list[RedKnotConfig] = []
        self.stopped: list[str] = []
        self.flushed: list[bool] = []
        self.is_idle = True
        self.model, self.tp_cpu_group = Model(), None
        backend = SimpleNamespace(follow_weights=self.followed.append)
        self.scheduler = SimpleNamespace(
            server_args=SimpleNamespace(),
            tp_worker=SimpleNamespace(model_runner=SimpleNamespace(attn_backend=backend, model=self.model)),
            tree_cache=SimpleNamespace(
                certification_metric=SimpleNamespace(update=self.shown.append),
                store="store",
                stop_store=self.stopped.append,
            ),
        )
        active.attach(self.scheduler.server_args, RedKnotConfig(Path("map.json"), certification=certification))

    @property
    def certification(self) -> Certification:
        config = active.config_of(self.scheduler.server_args)
        assert config is not None
        return config.certification

    def flush_cache(self, empty_cache: bool) -> bool:
        """As SGLang's. empty_cache: whether the device's own memory of allocations is emptied, too."""
        self.flushed.append(empty_cache)
        return self.is_idle

    def flush_cache_after_weight_update(self, message: Any) -> None:
        """As SGLang's with its seam."""
        assert self.flush_cache(message.torch_empty_cache)
        hook("flush_cache_after_weight_update")(None, self, message)

    def update(self, works: bool, loads: bool, message: Any = DISK) -> Any:
        def original(updater: Updater, message: Any) -> Any:
            if loads:
                assert updater.model.load_weights("weights") == "loaded"
            if works:
                updater.flush_cache_after_weight_update(message)
            return SimpleNamespace(success=works, message="so it went")

        return hook("SchedulerWeightUpdaterManager.update_weights_from_disk")(original, self, message)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """What other ranks say: whether they have begun to load, and whether they failed. None for a rank that is alone."""
    others: list[tuple[bool, bool]] = []

    def all_reduce(found: torch.Tensor, op: Any, group: Any) -> None:
        for other in others:
            found |= torch.tensor(other, dtype=found.dtype)

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 1 + len(others))
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return others


def test_what_is_derived_from_weights_follows_them() -> None:
    updater = Updater()
    hook("flush_cache_after_weight_update")(None, updater, DISK)
    expected = CERTIFIED.with_weights(UPDATED)
    assert updater.certification == expected and [config.certification for config in updater.shown] == [expected]
    assert updater.followed == [updater.model]
    assert expected.policies == ("exact",) and expected.digest is None
    assert len(updater.stopped) == 1, "the store is of the weights that the server started with"


@pytest.mark.usefixtures("ranks")
def test_an_update_that_fails_halfway_leaves_nothing_certified_and_nothing_cached() -> None:
    updater = Updater()
    output = updater.update(works=False, loads=True)
    assert not output.success and output.message == "so it went"
    found = updater.certification
    assert (found.weights, found.policies, found.digest) == (UNKNOWN, (), None)
    assert "load a whole checkpoint" in str(found.status("exact")["reason"]) and not found.report("exact")["certified"]
    assert (
        updater.flushed == [DISK.torch_empty_cache]
        and updater.followed == [updater.model]
        and updater.shown[-1].certification == found
    )


@pytest.mark.usefixtures("ranks")
def test_an_update_that_fails_halfway_beside_paused_requests_ends_nothing_but_says_so() -> None:
    updater = Updater()
    updater.is_idle = False
    output = updater.update(works=False, loads=True)
    assert not output.success and "call /flush_cache" in output.message
    assert updater.certification.weights == UNKNOWN and updater.followed == [updater.model]


def test_newer_sglang_says_how_it_went() -> None:
    updater = Updater()
    hook("flush_cache_after_weight_update")((True, "so"), updater, DISK, True, "so")
    assert updater.certification.weights == UPDATED


@pytest.mark.usefixtures("ranks")
def test_an_update_that_fails_before_it_loads_changes_nothing() -> None:
    updater = Updater()
    updater.update(works=False, loads=False)
    assert updater.certification == CERTIFIED and not updater.flushed


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(("message", "weights"), [(DISK, UPDATED), (TENSOR, UNKNOWN)])
def test_a_whole_checkpoint_ends_that(message: Any, weights: str) -> None:
    """Of tensors nobody says that all have come."""
    updater = Updater(CERTIFIED.with_weights(UNKNOWN))
    assert updater.update(works=True, loads=True, message=message).success
    assert updater.certification.weights == weights
    assert updater.certification.covers("exact") == (weights == UPDATED)


@pytest.mark.parametrize(
    ("works", "loads", "other"),
    [
        # This rank has loaded all, and another one stopped halfway, or did not begin.
        (True, True, (True, True)),
        (True, True, (False, True)),
        # This one did not begin, and another one has loaded.
        (False, False, (True, False)),
    ],
)
def test_one_rank_that_fails_is_enough(
    ranks: list[tuple[bool, bool]], works: bool, loads: bool, other: tuple[bool, bool]
) -> None:
    ranks.append(other)
    updater = Updater()
    output = updater.update(works, loads)
    assert not output.success and updater.certification.weights == UNKNOWN
    assert ("another rank" in output.message) == works
    assert updater.flushed == [DISK.torch_empty_cache], "all ranks empty their caches, once"


@pytest.mark.usefixtures("ranks")
def test_a_model_loads_as_before_afterwards() -> None:
    """By its class's function, or by its own, where heads are dealt out."""
    updater = Updater()
    updater.update(works=True, loads=True)
    assert "load_weights" not in vars(updater.model)

    def own(weights: str) -> str:
        return "loaded"

    updater.model.load_weights = own  # type: ignore[method-assign]
    updater.update(works=True, loads=True)
    assert vars(updater.model)["load_weights"] is own


def test_stock_servers_are_left_alone() -> None:
    updater = Updater()
    vars(updater.scheduler.server_args).clear()
    assert not updater.update(works=False, loads=True).success and not updater.flushed


@before_adapted
def test_sglang_s_own_failures_do_not_empty_the_cache() -> None:
    """Else the hook would do it a second time."""
    asked: list[Any] = []
    worker = SimpleNamespace(update_weights_from_disk=lambda message: (False, "no such folder"))
    updater = SchedulerWeightUpdaterManager(
        tp_worker=worker,
        draft_worker=None,
        tp_cpu_group=None,
        memory_saver_adapter=None,
        flush_cache=asked.append,
        is_fully_idle=lambda: True,
    )
    # Where another test has put the hooks in place, without them.
    original = inspect.unwrap(SchedulerWeightUpdaterManager.update_weights_from_disk)
    assert not original(updater, DISK).success and not asked


@pytest.mark.parametrize("worked", [True, False])
@pytest.mark.parametrize("source", ["disk", "distributed", "tensor", "ipc"])
def test_answers_are_no_longer_certified(source: str, worked: bool) -> None:
    manager = SimpleNamespace(server_args=SimpleNamespace())
    active.attach(manager.server_args, RedKnotConfig(Path("map.json"), certification=CERTIFIED))

    async def update(manager: Any, obj: Any) -> tuple[bool, str]:
        return worked, "message"

    where = "TokenizerManager" if source == "disk" else "TokenizerControlMixin"
    assert asyncio.run(hook(f"{where}.update_weights_from_{source}")(update, manager, "obj")) == (worked, "message")
    config = active.config_of(manager.server_args)
    assert config is not None
    assert config.certification.covers("exact") and config.certification.covers("none") is not worked


def test_weights_are_never_again_those_of_the_start() -> None:
    updated = CERTIFIED.with_weights(UPDATED)
    assert CERTIFIED.with_weights(STARTED) is CERTIFIED and updated.with_weights(STARTED) is updated
    assert updated.with_weights(UNKNOWN).with_weights(UPDATED) == updated


@pytest.fixture
def pool() -> Any:
    return HeadClassPool(4, 3, HeadMap.from_global_heads(1, 2, ((0, 0),), 8, 1), 2, torch.float32, "cpu")


@pytest.mark.parametrize("saver", [True, False])
@pytest.mark.parametrize("backup", [True, False])
@pytest.mark.parametrize("tags", [None, ["weights"], ["kv_cache"]])
def test_weights_that_were_released_without_a_copy_are_no_model_s(
    tags: list[str] | None, backup: bool, saver: bool
) -> None:
    updater = Updater()
    vars(updater.scheduler.server_args).update(enable_memory_saver=saver, enable_weights_cpu_backup=backup)
    hook("release_memory_occupation")(None, updater, ReleaseMemoryOccupationReqInput(tags=tags))
    lost = saver and not backup and tags != ["kv_cache"]
    assert updater.certification.weights == (UNKNOWN if lost else STARTED)


@pytest.mark.parametrize("tags", [None, ["weights"], ["kv_cache"]])
def test_a_pool_that_comes_back_is_as_at_first(tags: list[str] | None, pool: Any) -> None:
    updater = Updater()
    vars(updater.scheduler.server_args).update(enable_memory_saver=True, enable_weights_cpu_backup=True)
    updater.scheduler.token_to_kv_pool_allocator = SimpleNamespace(get_kvcache=lambda: pool)
    buffers = [*pool.full_kv_pool.k, *pool.full_kv_pool.v, *pool.swa_kv_pool.k, *pool.swa_kv_pool.v]
    for buffer in buffers:
        buffer.fill_(float("nan"))
    hook("resume_memory_occupation")(None, updater, ResumeMemoryOccupationReqInput(tags=tags))
    assert all(bool((buffer == 0).all()) == (tags != ["weights"]) for buffer in buffers)
