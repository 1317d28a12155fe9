# SPDX-License-Identifier: Apache-2.0
"""What a caller hands to SGLang's tokenizer manager stays as it was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang import active
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.seams import tokenizer

SEPARATOR = 99


def hook(name: str) -> Any:
    (found,) = [seam.hook for seam in tokenizer.SEAMS if seam.target.endswith("." + name)]
    return found


def manager() -> Any:
    made = SimpleNamespace(
        server_args=SimpleNamespace(disable_radix_cache=False),
        tokenizer=None,
        redknot_separator=SEPARATOR,
        redknot_special=frozenset(),
    )
    active.attach(made.server_args, RedKnotConfig(Path("map.json"), mode="segmented", repair="none"))
    return made


def ask(tokens: list[int], params: dict[Any, Any] | None) -> tuple[list[int], Any]:
    """Token ids and sampling parameters that SGLang goes on with."""
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

    found = asyncio.run(hook("_tokenize_one_request")(tokenize, manager(), obj))
    return found, obj.sampling_params.get("custom_params")


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
    assert ask([1, 2], {"redknot_mode": "exact"})[1] is None
