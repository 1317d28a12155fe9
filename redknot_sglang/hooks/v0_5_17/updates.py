# SPDX-License-Identifier: Apache-2.0
"""SGLang's cache flushes, weight updates, releases of memory and adapter unloading: when they may happen.

All of them need a scheduler that is idle, or free of an adapter. Clients make sure of that by waiting for their own answers.
They cannot wait for isolated prefills, of which they know nothing, nor for the end of the step that gave their last
answer. So such a message is held back for that long, which is a step or two.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from redknot_sglang.plan.request import is_isolated
from redknot_sglang.seams import Seam

# A flush that has to wait for the end of a step waits this long at most, in seconds.
_FLUSH_TIMEOUT = 60.0
# Attribute of a Scheduler: messages that are held back.
_HELD = "redknot_held"


def _hold_back(original: Any, scheduler: Any, messages: list[Any]) -> None:
    """Handle messages in their order, but those that have to wait for work nobody waits for."""
    reuse = getattr(scheduler.tree_cache, "reuse", None)
    held = scheduler.__dict__.pop(_HELD, [])
    if reuse is None or not (held or any(isinstance(message, _held_kinds()) for message in messages)):
        original(scheduler, messages)
        return
    still_held = []
    for message in [*held, *messages]:
        if isinstance(message, _held_kinds()) and _must_wait(scheduler, reuse, message):
            still_held.append(message)
        else:
            original(scheduler, [message])
    if still_held:
        setattr(scheduler, _HELD, still_held)


def _held_kinds() -> tuple[type, ...]:
    from redknot_sglang.seams.sglang import (
        ReleaseMemoryOccupationReqInput,
        UnloadLoRAAdapterReqInput,
        UpdateWeightFromDiskReqInput,
        UpdateWeightsFromDistributedReqInput,
        UpdateWeightsFromIPCReqInput,
        UpdateWeightsFromTensorReqInput,
    )

    return (
        UpdateWeightFromDiskReqInput,
        UpdateWeightsFromDistributedReqInput,
        UpdateWeightsFromTensorReqInput,
        UpdateWeightsFromIPCReqInput,
        UnloadLoRAAdapterReqInput,
        ReleaseMemoryOccupationReqInput,
    )


def _must_wait(scheduler: Any, reuse: Any, message: Any) -> bool:
    if scheduler._engine_paused:
        return False
    adapter = getattr(message, "lora_id", None)
    if adapter is not None:
        return bool(reuse.sources.isolated.uses_adapter(adapter))
    return not scheduler.is_fully_idle() and nobody_waits(scheduler)


def nobody_waits(scheduler: Any) -> bool:
    """Whether all requests in the scheduler are isolated prefills, have ended, or end with the current step."""
    return all(is_isolated(req) or req.finished() or req.to_finish is not None for req in _requests(scheduler))


def _requests(scheduler: Any) -> Iterable[Any]:
    batches = [scheduler.running_batch, scheduler.last_batch]
    batches += [entry[0] for entry in getattr(scheduler, "result_queue", None) or ()]
    chunked = [scheduler.chunked_req] if scheduler.chunked_req is not None else []
    return chain(scheduler.waiting_queue, chunked, *(batch.reqs for batch in batches if batch is not None))


def _flush_after_the_step(original: Any, wrapper: Any, message: Any) -> Any:
    """Let a flush wait where a client would not know for what."""
    scheduler = wrapper._is_fully_idle.__self__
    reuse = getattr(scheduler.tree_cache, "reuse", None)
    waits = reuse is not None and not message.timeout_s and not scheduler._engine_paused
    if waits and not scheduler.is_fully_idle() and nobody_waits(scheduler):
        message.timeout_s = _FLUSH_TIMEOUT
    return original(wrapper, message)


SEAMS = (
    Seam(
        "managers.scheduler.Scheduler.process_input_requests",
        _hold_back,
        "around",
        "weight updates, releases of memory and the unloading of adapters wait for isolated prefills",
    ),
    Seam(
        "managers.scheduler_components.flush_wrapper.SchedulerFlushWrapper.handle",
        _flush_after_the_step,
        "around",
        "a flush waits for the end of the step that gave the last answer",
    ),
)
