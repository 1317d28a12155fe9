# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler: our messages to it, about preloaded segments and what the cache holds; and requests that compute segments."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from redknot_sglang import active
from redknot_sglang.certificate.check import refusal
from redknot_sglang.config import STARTED, RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.hooks.v0_5_17.inspect import inventory_of
from redknot_sglang.plan.request import state_of, take_options
from redknot_sglang.seams import Seam
from redknot_sglang.serve.segment_calls import FORGET, INSPECT, LIST, PREFIX, PRELOAD_OPTION, WANT, WHOLE_OPTION


def _answer(original: Any, scheduler: Any, request: Any) -> None:
    """SGLang fans this message out to all schedulers, every rank of which acts on it."""
    if active.config_of(scheduler.server_args) is None or not request.method.startswith(PREFIX):
        original(scheduler, request)
        return
    from redknot_sglang.seams.sglang import DumperControlReqOutput

    rank = {"rank": scheduler.ps.dp_rank or 0}
    try:
        if request.method == INSPECT:
            answer = rank | inventory_of(scheduler)
        else:
            answer = rank | _CALLS[request.method](_segments_of(scheduler), request.body)
        output = DumperControlReqOutput(success=True, response=[answer])
    except RedKnotError as error:
        output = DumperControlReqOutput(success=False, response=[], error=str(error))
    scheduler.ipc_channels.send_to_tokenizer.send_output(output, request)


def _segments_of(scheduler: Any) -> Any:
    if "redknot_preloaded" not in scheduler.__dict__:
        from redknot_sglang.reuse.preload import PreloadedSegments

        reuse = getattr(scheduler.tree_cache, "reuse", None)
        # Without a radix cache nothing is ever listed.
        unlock = (lambda: None) if reuse is None else reuse.sources.shared.release
        facts = scheduler.tp_worker.model_runner.attn_backend.facts
        longest = scheduler.max_req_input_len
        scheduler.redknot_preloaded = PreloadedSegments(scheduler.tree_cache, facts, longest, unlock)
    return scheduler.redknot_preloaded


def _want(preloaded: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    from redknot_sglang.reuse.preload import Preloaded

    lead = array("q", body["lead"])
    shared = {name: body[name] for name in ("extra_key", "whole", "repair")}
    return {"there": preloaded.want([Preloaded(lead, array("q", tokens), **shared) for tokens in body["segments"]])}


def _list(preloaded: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"segments": preloaded.listed()}


def _forget(preloaded: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"segments": preloaded.forget(body["ids"])}


_CALLS = {WANT: _want, LIST: _list, FORGET: _forget}


def mark_preload(scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    """Before the request is matched for the first time. scheduler: SGLang's Scheduler. req: its Req."""
    config = active.config_of(scheduler.server_args)
    if config is None:
        return
    options = req.sampling_params.custom_params or {}
    if options.get(PRELOAD_OPTION):
        state = state_of(req)
        state.preloads, state.whole = True, options[WHOLE_OPTION]
        # On a prefill server it goes to no decode server, and SGLang takes it for a warm-up, whose KV it does not keep.
        req.skip_radix_cache_insert = False
    take_options(req)
    _refuse_uncertified(config, req)


def _refuse_uncertified(config: RedKnotConfig, req: Any) -> None:
    """The process that has read a request may not have heard yet that the weights are others. What runs already goes on."""
    state, found = state_of(req), config.certification
    if found.weights == STARTED or not found.enforced or state.plan is None or req.output_ids:
        return
    name = config.certified_name(state.plan.repair.name)
    if not found.covers(name):
        state.plan = None
        req.set_finish_with_abort(refusal(found, name))


SEAMS = (
    Seam(
        "managers.scheduler.Scheduler.handle_dumper_control",
        _answer,
        "around",
        "/redknot/segments and /redknot/inspect ask the scheduler what the tree holds",
    ),
    Seam(
        "managers.scheduler.Scheduler._add_request_to_queue",
        mark_preload,
        "before",
        "requests that compute segments ahead of time are marked, our options are kept from logit processors, and what is no longer "
        "certified is refused",
    ),
)
