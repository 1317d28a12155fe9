# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler and forward batch: chunks of segmented requests, and gather extends."""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.plan.request import is_isolated, is_own_work, known_state, mark_batch, state_of, stretches_of
from redknot_sglang.seams import Seam


def _one_pass(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Isolated prefills need the scheduler's queue, which the prefix cache does not know; nobody preempted is lost."""
    reuse = getattr(scheduler.tree_cache, "reuse", None)
    if reuse is None:
        return original(scheduler, *args, **kwargs)
    reuse.sources.isolated.scheduler = scheduler
    reuse.begin_pass()
    found = original(scheduler, *args, **kwargs)
    for req in reuse.take_preempted():
        scheduler._add_request_to_queue(req)
    return found


def _extend_chunk(original: Any, adder: Any, req: Any) -> Any:
    reuse = getattr(adder.tree_cache, "reuse", None)
    if reuse is None:
        return original(adder, req)
    return reuse.extend_chunk(adder, req, lambda: original(adder, req))


def _gather_extend(original: Any, batch: Any) -> None:
    """Give SGLang the permuted sequences, then put the slots in order."""
    stretches = {index: stretch for index, req in enumerate(batch.reqs) if (stretch := _taken(req)) is not None}
    if not stretches:
        original(batch)
        return
    tokens = {index: batch.reqs[index].full_untruncated_fill_ids for index in stretches}
    for index, stretch in stretches.items():
        batch.reqs[index].full_untruncated_fill_ids = stretch.permuted(tokens[index])
    original(batch)
    from redknot_sglang.batches import restore
    from redknot_sglang.serve.report import count_stretch

    for index, stretch in stretches.items():
        req = batch.reqs[index]
        req.full_untruncated_fill_ids = tokens[index]
        restore(batch.req_to_token_pool.req_to_token[req.req_pool_idx], stretch)
        count_stretch(req, stretch)
    mark_batch(batch, stretches)


def _taken(req: Any) -> Any:
    """The stretch that a request was admitted with, which is taken off it; None if there is none."""
    state = known_state(req)
    if state is None:
        return None
    stretch, state.stretch = state.stretch, None
    return stretch


def _true_positions(result: Any, cls: Any, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """Positions of a gather extend's rows, and their runs for attention.

    The runs go straight to the attention backend, which plans this batch next: SGLang may copy a ForwardBatch on its
    way there, and copies declared fields only.
    """
    if active.config_of(runner.server_args) is None:
        return
    # A draft that is verified counts as an extend in SGLang, but is the decode step of requests that were prefilled before.
    is_extend = batch.forward_mode.is_extend() and not batch.forward_mode.is_target_verify()
    stretches = stretches_of(batch) if is_extend else {}
    if runner.is_draft_worker:
        # Its attention takes them for the last rows, so that repaired ones see a little too much: a draft is a guess.
        if stretches:
            _set_positions(result, _runs_of(batch, stretches))
        return
    runner.attn_backend.runs = None
    runner.attn_backend.probed = is_extend and any(state_of(req).whole for req in batch.reqs)
    only_asks = is_extend and all(state_of(req).asks for req in batch.reqs)
    runner.attn_backend.choosing = only_asks and runner.attn_backend.facts.asking_layers > 0
    if is_extend:
        runner.attn_backend.forwards.begin(runner.attn_backend.choosing)
        if not only_asks:
            _note_deep_rows(batch)
    if stretches:
        runner.attn_backend.runs = _runs_of(batch, stretches)
        _set_positions(result, runner.attn_backend.runs)


def _note_deep_rows(batch: Any) -> None:
    """Rows of texts that ask for documents go through all layers beside rows of other requests, and reports count them so."""
    for req, prefix, rows in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
        if state_of(req).asks:
            state_of(req).deep.append((prefix, prefix + rows))


def _runs_of(batch: Any, stretches: Any) -> Any:
    from redknot_sglang.plan.gather import Runs

    ends = [prefix + rows for prefix, rows in zip(batch.prefix_lens, batch.extend_lens, strict=True)]
    return Runs.of(batch.prefix_lens, ends, stretches)


def _set_positions(forward_batch: Any, runs: Any) -> None:
    from redknot_sglang.kernels.host_copy import to_device

    positions = forward_batch.positions
    forward_batch.positions = to_device(runs.positions(), positions.device, positions.dtype)


def _drop_aborted(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """Requests that were aborted while they waited give up their locks on segments."""
    reuse = getattr(scheduler.tree_cache, "reuse", None)
    if reuse is not None:
        reuse.sources.left_queue(scheduler.waiting_queue)


def _clients_fill_the_queue(original: Any, scheduler: Any, req: Any) -> Any:
    """Only requests of clients count against `--max-queued-requests`, and only they are dropped for it.

    Segments that are computed for a request, or ahead of time, come many at once and belong to one call of a client.
    """
    reuse = getattr(scheduler.tree_cache, "reuse", None)
    if reuse is None:
        return original(scheduler, req)
    if is_own_work(req):
        return False
    queue = scheduler.waiting_queue
    clients = scheduler.waiting_queue = [waiting for waiting in queue if not is_own_work(waiting)]
    try:
        dropped = original(scheduler, req)
    finally:
        scheduler.waiting_queue = queue
    left = {id(waiting) for waiting in clients}
    queue[:] = [waiting for waiting in queue if is_own_work(waiting) or id(waiting) in left]
    reuse.sources.left_queue(queue)
    return dropped


def _decode_fits(original: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Running requests go before one that waits with locks, and before segments that may be needed again."""
    fits = original(batch, *args, **kwargs)
    reuse = getattr(batch.tree_cache, "reuse", None)
    if fits or reuse is None:
        return fits
    reuse.sources.make_room()
    return original(batch, *args, **kwargs)


def _for_clients_only(original: Any, streamer: Any, reqs: list[Any], *args: Any, **kwargs: Any) -> Any:
    """Nobody waits for the answers of isolated prefills."""
    if active.config_of(streamer.server_args) is None:
        return original(streamer, reqs, *args, **kwargs)
    return original(streamer, [req for req in reqs if not is_isolated(req)], *args, **kwargs)


SEAMS = (
    Seam(
        "managers.scheduler.Scheduler._get_new_batch_prefill_raw",
        _one_pass,
        "around",
        "missing segments are computed by requests of the scheduler's own, which may leave a pass with nobody to admit",
    ),
    Seam(
        "managers.schedule_policy.PrefillAdder.add_chunked_req",
        _extend_chunk,
        "around",
        "slots of a segmented request's next chunk",
    ),
    Seam(
        "managers.schedule_batch.ScheduleBatch.prepare_for_extend",
        _gather_extend,
        "around",
        "computed rows at arbitrary positions",
    ),
    Seam(
        "model_executor.forward_batch_info.ForwardBatch.init_new",
        _true_positions,
        "after",
        "true positions of a gather extend's rows",
    ),
    Seam(
        "managers.schedule_batch.ScheduleBatch.check_decode_mem",
        _decode_fits,
        "around",
        "locks on segments never stop a running request",
    ),
    *(
        Seam(
            f"managers.scheduler.Scheduler.{name}",
            _drop_aborted,
            "after",
            "locks of waiting segmented requests, and isolated prefills that left the queue",
        )
        for name in ("abort_request", "_abort_on_waiting_timeout")
    ),
    Seam(
        "managers.scheduler.Scheduler._abort_on_queued_limit",
        _clients_fill_the_queue,
        "around",
        "segments that are computed for a request do not count as queued requests",
    ),
    Seam(
        "managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
        _for_clients_only,
        "around",
        "isolated prefills have no client",
    ),
)
