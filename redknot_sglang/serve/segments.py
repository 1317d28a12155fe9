# SPDX-License-Identifier: Apache-2.0
"""Segments computed ahead of time: the calls of `/redknot/segments`, in the process that has the tokenizer.

A segment that is not in the prefix cache is computed by an ordinary request for one token, whose prompt is the segment:
so the scheduler batches, cuts and admits it like any other. Its KV stays in the cache, where later requests find it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.identity import namespace_of
from redknot_sglang.plan.options import MODE, REPAIR, SEGMENTS, repair_of
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.serve.requests import check_namespace, resolve_request
from redknot_sglang.serve.schedulers import ask
from redknot_sglang.serve.segment_calls import FORGET, LIST, PRELOAD_OPTION, RESOLVED, WANT, WHOLE_OPTION
from redknot_sglang.serve.segment_text import SegmentText

FIELDS = ("segments", "lead", "extra_key", "repair")
# Segments in flight: enough to fill a prefill batch. More would only stand in the queue in front of clients' requests.
AT_ONCE = 64


async def preload(manager: Any, config: RedKnotConfig, body: Any, client: Any) -> list[dict[str, Any]]:
    """Compute the segments that a POST names, on every data-parallel rank that does not have them yet.

    manager: SGLang's tokenizer manager.
    config: the server's settings.
    body: the JSON body, checked here.
    client: the HTTP request; if its client hangs up, what is under way is aborted.
    Returns `tokens` and `new` of each segment, in order. Raises RedKnotError for a bad body, and whatever SGLang raises
    for a request that it cannot take.
    """
    if manager.server_args.disaggregation_mode == "decode":
        raise RedKnotError("a decode server computes no segments: send this call to the prefill server")
    fields = _checked(body, config)
    text = SegmentText(manager, config)
    lead = text.lead(fields["lead"]) if _is_after_lead(config, fields["repair"]) else []
    parts: list[tuple[int, ...]] = []
    for index, value in enumerate(fields["segments"]):
        parts.append(tuple(text.segment(f"segment {index}", value)))
        # Tokenizing a corpus must not keep the answers of others waiting.
        await asyncio.sleep(0)
    repair = _servable(manager, config, fields["repair"])
    whole = parse_repair(repair).keeps_whole
    wanted = [list(part) for part in dict.fromkeys(parts) if part]
    shared = {"lead": lead, "extra_key": fields["extra_key"], "whole": whole, "repair": repair}
    ranks = await ask(manager, WANT, {**shared, "segments": wanted})
    missing = [
        (rank["rank"] if len(ranks) > 1 else None, lead + tokens)
        for rank in ranks
        for tokens, there in zip(wanted, rank["there"], strict=True)
        if not there
    ]
    await _compute(manager, missing, namespace_of(fields["extra_key"], whole), whole, client)
    new = {tuple(tokens) for rank in ranks for tokens, there in zip(wanted, rank["there"], strict=True) if not there}
    answer = []
    for part in parts:
        answer.append({"tokens": len(part), "new": part in new})
        # Of equal segments in one call only the first counts as new.
        new.discard(part)
    return answer


async def listed(manager: Any) -> list[dict[str, Any]]:
    """The preloaded segments, the oldest first. `resident_tokens` is the count of the data-parallel rank that holds
    fewest of them.
    """
    ranks = [{entry["id"]: entry for entry in rank["segments"]} for rank in await ask(manager, LIST, {})]
    return [
        {
            **entry,
            "resident_tokens": min(rank[identity]["resident_tokens"] if identity in rank else 0 for rank in ranks),
        }
        for identity, entry in ranks[0].items()
    ]


async def forget(manager: Any, identities: Sequence[str] | None) -> list[dict[str, Any]]:
    """Delete preloaded segments from list and cache.

    manager: SGLang's tokenizer manager.
    identities: ids as the list shows them, or None for all.
    Returns `id` and `freed_tokens` of each, the tokens of all data-parallel ranks together.
    """
    freed: Counter[str] = Counter()
    for rank in await ask(manager, FORGET, {"ids": identities}):
        freed.update({entry["id"]: entry["freed_tokens"] for entry in rank["segments"]})
    return [{"id": identity, "freed_tokens": tokens} for identity, tokens in freed.items()]


def _is_after_lead(config: RedKnotConfig, repair: str | None) -> bool:
    """Whether segments are computed behind the lead. repair: of the request, or None for the server's. Raises
    RedKnotError.
    """
    return config.segment_lead == "lead" or repair_of(repair, config, "repair").selects


def _checked(body: Any, config: RedKnotConfig) -> dict[str, Any]:
    """All fields of a POST's body, None for those left out. Raises RedKnotError if one is unknown or of a wrong type."""
    if not isinstance(body, Mapping):
        raise RedKnotError('the body must be a JSON object such as {"segments": ["text of a document"]}')
    unknown = sorted(name for name in body if name not in FIELDS)
    if unknown:
        raise RedKnotError(f"field {unknown[0]} is not known; the body may have {', '.join(FIELDS)}")
    fields = {name: body.get(name) for name in FIELDS}
    if not isinstance(fields["segments"], list):
        raise RedKnotError("segments must be a list, each segment a text or a list of token ids")
    for name in ("extra_key", "repair"):
        if fields[name] is not None and not isinstance(fields[name], str):
            raise RedKnotError(f"{name} must be text, got {type(fields[name]).__name__}")
    check_namespace("extra_key", fields["extra_key"])
    after_lead = _is_after_lead(config, fields["repair"])
    if after_lead and fields["lead"] is None:
        raise RedKnotError(
            "lead is missing: under this server's --redknot-segment-lead or this repair policy segments are computed after it, so give "
            "the text in front of the first segment"
        )
    if not after_lead and fields["lead"] is not None:
        raise RedKnotError(
            "lead has no effect: this server computes segments on their own, so leave it out or start with "
            "--redknot-segment-lead lead"
        )
    return fields


def _servable(manager: Any, config: RedKnotConfig, repair: str | None) -> str:
    """The full name of a repair policy, or of the server's if it is None. Raises the error that a request under it
    gets.
    """
    params = {MODE: "segmented", SEGMENTS: [0, 1], **({} if repair is None else {REPAIR: repair})}
    # No token has the number -1, so none of these is a separator.
    prompt = [-1, -1]
    trial = _request(prompt, params, None, None)
    resolve_request(manager, config, trial, prompt)
    return str(trial.sampling_params["custom_params"][REPAIR])


def _request(
    tokens: list[int], params: dict[str, Any] | None, extra_key: str | None, rank: int | None, apart: bool = False
) -> Any:
    """A request for one token. apart: whether it is for a prefill server, where its KV must not go to a decode server."""
    from redknot_sglang.seams.sglang import FAKE_BOOTSTRAP_HOST, GenerateReqInput

    sampling = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True, "custom_params": params}
    return GenerateReqInput(
        input_ids=tokens,
        sampling_params=sampling,
        extra_key=extra_key,
        routed_dp_rank=rank,
        **({"bootstrap_host": FAKE_BOOTSTRAP_HOST, "bootstrap_room": 0} if apart else {}),
    )


async def _compute(
    manager: Any, prompts: Sequence[tuple[int | None, list[int]]], extra_key: str | None, whole: bool, client: Any
) -> None:
    """Compute prompts, each on its data-parallel rank. After an error no more are begun, and the first error is raised."""
    gate, stopped = asyncio.Semaphore(AT_ONCE), False

    async def one(rank: int | None, tokens: list[int]) -> None:
        nonlocal stopped
        async with gate:
            stopped = stopped or await client.is_disconnected()
            if stopped:
                return
            options = {PRELOAD_OPTION: True, WHOLE_OPTION: whole}
            request = _request(tokens, options, extra_key, rank, manager.server_args.disaggregation_mode == "prefill")
            setattr(request, RESOLVED, True)
            try:
                async for answer in manager.generate_request(request, client):
                    reason = answer["meta_info"]["finish_reason"]
                if reason is not None and reason["type"] == "abort":
                    raise RedKnotError(f"a segment was not computed: {reason['message']}; send the call again")
            except BaseException:
                stopped = True
                raise

    # All are waited for, so that no request goes on whose error nobody would see.
    results = await asyncio.gather(*(one(*prompt) for prompt in prompts), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
