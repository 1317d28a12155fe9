# SPDX-License-Identifier: Apache-2.0
"""What a caller hands to SGLang's tokenizer manager stays as it was, and what comes back says what it was computed with."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang import active
from redknot_sglang.config import UNKNOWN, UPDATED, Certification, RedKnotConfig
from redknot_sglang.hooks.v0_5_17 import tokenizer
from redknot_sglang.plan.request import state_of, take_options

SEPARATOR = 99


def hook(name: str) -> Any:
    (found,) = [seam.hook for seam in tokenizer.SEAMS if seam.target.endswith("." + name)]
    return found


def manager(preferred: dict[str, Any] | None = None) -> Any:
    made = SimpleNamespace(
        server_args=SimpleNamespace(disable_radix_cache=False, disaggregation_mode="null"),
        tokenizer=None,
        redknot_separator=SEPARATOR,
        redknot_special=frozenset(),
        preferred_sampling_params=preferred,
    )
    active.attach(made.server_args, RedKnotConfig(Path("map.json"), mode="segmented", repair="none"))
    return made


def ask(
    tokens: list[int], params: dict[Any, Any] | None, preferred: dict[str, Any] | None = None
) -> tuple[list[int], Any]:
    """Token ids and `custom_params` that SGLang goes on with. preferred: the server's `--preferred-sampling-params`."""
    obj = SimpleNamespace(
        input_ids=tokens,
        input_embeds=None,
        extra_key=None,
        sampling_params={"max_new_tokens": 1} if params is None else {"max_new_tokens": 1, "custom_params": params},
        return_logprob=False,
        session_params=None,
    )

    async def tokenize(manager: Any, obj: Any) -> list[int]:
        hook("_validate_one_request")(lambda *args: None, manager, obj, obj.input_ids)
        return list(obj.input_ids)

    found = asyncio.run(hook("_tokenize_one_request")(tokenize, manager(preferred), obj))
    return found, {**(preferred or {}), **obj.sampling_params}.get("custom_params")


def seen(tokens: list[int], params: dict[Any, Any] | None, preferred: dict[str, Any] | None = None) -> Any:
    """What a custom logit processor gets of a request, through SGLang's own request object."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    found, resolved = ask(tokens, params, preferred)
    # From 0.5.23 on, SGLang puts the request into its parameters only where it has a processor, and as a weak reference.
    params_given = SamplingParams(max_new_tokens=1, custom_params=resolved)
    req = Req("1", "", array("q", found), params_given, custom_logit_processor="theirs")
    take_options(req)
    assert (state_of(req).plan is not None) == bool(resolved and resolved.get("redknot_segments"))
    params = req.sampling_params.custom_params
    if params is not None:
        assert params.pop("__req__").rid == "1"
    return params


def test_a_caller_s_list_is_never_changed() -> None:
    tokens, params = [1, SEPARATOR, 2, 3, SEPARATOR, 4], {"mine": [1]}
    first, second = ask(tokens, params), ask(tokens, params)
    assert tokens == [1, SEPARATOR, 2, 3, SEPARATOR, 4] and params == {"mine": [1]}
    assert first == second and first[0] == [1, 2, 3, 4] and first[1]["redknot_segments"] == [1, 3]


@pytest.mark.parametrize("theirs", [{"mine": 1, "nested": {"redknot_like": [1, 2]}}, {1: "a number for a name"}])
@pytest.mark.parametrize("ours", [{}, {"redknot_mode": "exact"}, {"redknot_mode": "segmented"}])
def test_parameters_of_others_arrive_whole(theirs: dict[Any, Any], ours: dict[str, Any]) -> None:
    for tokens in ([1, SEPARATOR, 2, 3, SEPARATOR, 4], [1, 2, 3]):
        if SEPARATOR not in tokens and ours.get("redknot_mode") == "segmented":
            continue
        _, params = ask(tokens, {**theirs, **ours})
        assert {key: params[key] for key in theirs} == theirs


def test_no_parameters_and_empty_ones_stay_so() -> None:
    assert ask([1, 2], None)[1] is None and ask([1, 2], {})[1] == {}
    # A logit processor that expects a dictionary because its client sends one must get one.
    assert ask([1, 2], {"redknot_mode": "exact"})[1] == {}


@pytest.mark.parametrize("tokens", [[1, SEPARATOR, 2, 3, SEPARATOR, 4], [1, 2, 3]], ids=["segments", "none"])
def test_logit_processors_see_what_they_see_in_stock(tokens: list[int]) -> None:
    assert seen(tokens, None) is None
    # SGLang puts the request itself into whatever dictionary the client gave.
    all_theirs: list[dict[Any, Any]] = [{}, {"mine": 1, "knot": {"redknot_like": [1, 2]}}, {1: 2, "redknotty": 3}]
    all_ours: list[dict[Any, Any]] = [
        {},
        {"redknot_mode": "exact"},
        {"redknot_repair": "none"},
        {"redknot_segments": []},
    ]
    for theirs in all_theirs:
        for ours in all_ours:
            given = tokens if "redknot_segments" not in ours else [1, 2, 3]
            params = seen(given, {**theirs, **ours})
            assert params == theirs


def test_what_the_server_prefers_is_not_lost_to_our_options() -> None:
    tokens = [1, SEPARATOR, 2, 3, SEPARATOR, 4]
    preferred = {"custom_params": {"mine": 1, "redknot_repair": "boundary:2"}}
    found, resolved = ask(tokens, None, preferred)
    assert found == [1, 2, 3, 4] and resolved["mine"] == 1 and resolved["redknot_repair"] == "boundary:2"
    params = seen(tokens, None, preferred)
    assert params == {"mine": 1}
    # What a request says itself counts instead, as in stock SGLang.
    assert ask([1, 2], {"other": 2}, preferred)[1] == {"other": 2}
    assert preferred == {"custom_params": {"mine": 1, "redknot_repair": "boundary:2"}}


def test_a_process_that_did_not_hear_of_an_update_hears_of_it_by_the_next_answer() -> None:
    """There may be several that read requests, and an update goes through one of them."""
    made, certified = manager(), Certification("digest", ("exact", "none"))
    active.attach(made.server_args, RedKnotConfig(Path("map.json"), repair="none", certification=certified))
    said: list[dict[str, Any]] = [{}, {"weights": UPDATED}, {}, {"weights": UNKNOWN}]

    async def generate(manager: Any, obj: Any) -> AsyncIterator[Any]:
        for weights in said:
            yield {"meta_info": {"redknot": [None, {"mode": "exact", **weights}]}}

    async def ask_all() -> list[Any]:
        return [answer async for answer in hook("generate_request")(generate, made, SimpleNamespace())]

    reports = [answer["meta_info"]["redknot"] for answer in asyncio.run(ask_all())]
    assert [report["certified"] for report in reports] == [True, False, False, False]
    config = active.config_of(made.server_args)
    assert config is not None and config.certification == certified.with_weights(UNKNOWN)
