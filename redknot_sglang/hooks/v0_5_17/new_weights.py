# SPDX-License-Identifier: Apache-2.0
"""SGLang's weight updates, and its releases of memory: what follows from weights that are others now, or nobody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from redknot_sglang import active
from redknot_sglang.config import UNKNOWN, UPDATED
from redknot_sglang.seams import Seam

_ANOTHER_RANK = "another rank of this server has not loaded them. Load a whole checkpoint again"
_NOT_EMPTIED = "And the cache has not been emptied, since requests are not done: let them end or abort them, then call /flush_cache"


def _follow_weights(result: Any, updater: Any, message: Any, *said: Any) -> None:
    """New weights are in place, and the cache has been emptied unless the client asked to keep it.

    said: what newer SGLang will answer, besides.
    """
    from redknot_sglang.seams.sglang import UpdateWeightFromDiskReqInput

    scheduler = updater.scheduler
    config = active.config_of(scheduler.server_args)
    if config is None:
        return
    runner = scheduler.tp_worker.model_runner
    runner.attn_backend.follow_weights(runner.model)
    # What comes from elsewhere than a checkpoint may come in many messages, and none says that it is the last.
    whole = config.certification.weights != UNKNOWN or isinstance(message, UpdateWeightFromDiskReqInput)
    _say(scheduler, UPDATED if whole else UNKNOWN)
    if getattr(scheduler.tree_cache, "store", None) is not None:
        # Its objects are of the weights that the server started with.
        scheduler.tree_cache.stop_store("the weights were updated while the server ran")


def _say(scheduler: Any, weights: str) -> None:
    """Have status, metrics and answers follow from what the weights are now, as in `Certification`."""
    config = active.config_of(scheduler.server_args)
    assert config is not None
    config = replace(config, certification=config.certification.with_weights(weights))
    active.attach(scheduler.server_args, config)
    metric = scheduler.tree_cache.certification_metric
    if metric is not None:
        metric.update(config)


def _notice_failure(original: Any, updater: Any, message: Any) -> Any:
    """An update that fails on any rank after any rank has begun to load leaves weights that are no model's.

    Cached KV is of the weights before, on every rank, so all of them empty their caches as after an update.
    """
    scheduler = updater.scheduler
    if active.config_of(scheduler.server_args) is None:
        return original(updater, message)
    with _loads(scheduler.tp_worker.model_runner.model) as loads:
        output = original(updater, message)
    begun, failed = _on_any_rank(updater.tp_cpu_group, (bool(loads), not output.success))
    if begun and failed:
        if output.success:
            output.success, output.message = False, f"{output.message} But {_ANOTHER_RANK}"
        else:
            # SGLang's own function for that has other parameters in other versions, and may end the scheduler where requests are paused.
            if message.flush_cache and not updater.flush_cache(empty_cache=message.torch_empty_cache):
                output.message = f"{output.message} {_NOT_EMPTIED}"
            _follow_weights(None, updater, message)
        _say(scheduler, UNKNOWN)
    return output


@contextmanager
def _loads(model: Any) -> Iterator[list[bool]]:
    """Notes in a list that weights are being loaded into a model, for all of SGLang's ways to do that."""
    begun = list[bool]()
    load: Callable[..., Any] = model.load_weights
    own = vars(model).get("load_weights")

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        begun.append(True)
        return load(*args, **kwargs)

    model.load_weights = load_weights
    try:
        yield begun
    finally:
        del model.load_weights
        if own is not None:
            model.load_weights = own


def _on_any_rank(group: Any, facts: Sequence[bool]) -> list[bool]:
    """Which facts hold on one rank of a group at least. All ranks must ask at once."""
    import torch

    if torch.distributed.get_world_size(group) == 1:
        return list(facts)
    found = torch.tensor(facts, dtype=torch.int32)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group)
    return [bool(fact) for fact in found]


def _lose_weights(result: Any, updater: Any, message: Any) -> None:
    """Weights that were released without a copy are gone, until an update brings some."""
    from redknot_sglang.seams.sglang import GPU_MEMORY_TYPE_WEIGHTS

    server_args = updater.scheduler.server_args
    if active.config_of(server_args) is None or not server_args.enable_memory_saver:
        return
    if _is_meant(GPU_MEMORY_TYPE_WEIGHTS, message) and not server_args.enable_weights_cpu_backup:
        _say(updater.scheduler, UNKNOWN)


def _empty_pool(result: Any, updater: Any, message: Any) -> None:
    """The pool's memory is there again, and holds anything, which may be no number. Its row 0 is read where a batch is padded."""
    from redknot_sglang.seams.sglang import GPU_MEMORY_TYPE_KV_CACHE

    server_args = updater.scheduler.server_args
    if active.config_of(server_args) is None or not server_args.enable_memory_saver:
        return
    if _is_meant(GPU_MEMORY_TYPE_KV_CACHE, message):
        updater.scheduler.token_to_kv_pool_allocator.get_kvcache().clear()


def _is_meant(kind: str, message: Any) -> bool:
    """Whether a message is about a kind of memory; without tags it is about all kinds."""
    return not message.tags or kind in message.tags


async def _no_longer_certified(original: Any, manager: Any, *args: Any, **kwargs: Any) -> Any:
    """The processes that have the tokenizer check and report certificates, too. One that does not hear of an update here, or that
    it has failed, hears of it by the next answer.
    """
    result = await original(manager, *args, **kwargs)
    config = active.config_of(manager.server_args)
    if config is not None and result[0] and config.certification.weights != UNKNOWN:
        active.attach(manager.server_args, replace(config, certification=config.certification.with_weights(UPDATED)))
    return result


_UPDATER = "managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_SOURCES = ("disk", "distributed", "tensor", "ipc")

SEAMS = (
    Seam(
        f"{_UPDATER}.flush_cache_after_weight_update",
        _follow_weights,
        "after",
        "what is derived from weights, and certified of them, follows an update",
    ),
    *(
        Seam(
            f"{_UPDATER}.update_weights_from_{source}",
            _notice_failure,
            "around",
            "after an update that failed halfway nothing is certified, and nothing cached is reused",
        )
        for source in _SOURCES
    ),
    Seam(
        f"{_UPDATER}.release_memory_occupation",
        _lose_weights,
        "after",
        "answers by weights that are gone are not certified",
    ),
    Seam(
        f"{_UPDATER}.resume_memory_occupation",
        _empty_pool,
        "after",
        "memory of the pools that was given back and taken again holds anything",
    ),
    *(
        Seam(
            f"managers.{where}.update_weights_from_{source}",
            _no_longer_certified,
            "around",
            "answers no longer say that they are certified",
        )
        for where, sources in (
            ("tokenizer_manager.TokenizerManager", _SOURCES[:1]),
            ("tokenizer_control_mixin.TokenizerControlMixin", _SOURCES[1:]),
        )
        for source in sources
    ),
)
