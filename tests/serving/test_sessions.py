# SPDX-License-Identifier: Apache-2.0
"""SGLang's sessions (`/open_session`): a turn sends only what is new, and is answered as the whole prompt from an empty cache."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.serving.answers import Answer, agree, ask, read_answer
from tests.serving.harness import Server
from tests.serving.prompts import noise

pytestmark = pytest.mark.serving

ANSWER = 5


def turn(server: Server, session: str, after: str | None, tokens: list[int], **params: Any) -> tuple[str, Answer]:
    """A turn's rid, and its answer to `tokens` alone. after: rid of the turn that it goes on from. params: more of `session_params`."""
    body = server.generate(
        tokens,
        ANSWER,
        return_logprob=True,
        top_logprobs_num=2,
        session_params={"id": session, "rid": after, **params},
    )
    assert body["meta_info"]["redknot"]["mode"] == "exact"
    return body["meta_info"]["id"], read_answer(tokens, body)


def test_turns_of_a_session_are_answered_as_whole_prompts(redknot_server: Server) -> None:
    """Three turns, then another second one, and one that takes tokens back. The first is longer than sink and window."""
    rng = random.Random("session")
    first, second, third, other, back = (noise(rng, length) for length in (300, 40, 200, 60, 30))
    session = redknot_server.post("/open_session", {"capacity_of_str_len": 10000}).json()
    rid, one = turn(redknot_server, session, None, first)
    after_one = first + one.tokens
    next_rid, two = turn(redknot_server, session, rid, second)
    after_two = after_one + second + two.tokens
    _, three = turn(redknot_server, session, next_rid, third)
    _, branch = turn(redknot_server, session, rid, other)
    _, replaced = turn(redknot_server, session, rid, back, offset=280, replace=True)
    assert redknot_server.post("/close_session", {"session_id": session}).status_code == 200
    expected = {
        "one": (one, first),
        "two": (two, after_one + second),
        "three": (three, after_two + third),
        "branch": (branch, after_one + other),
        "replaced": (replaced, first[:280] + back),
    }
    assert two.cached >= len(first) and three.cached >= len(after_one), "without hits this shows nothing"
    for name, (found, prompt) in expected.items():
        redknot_server.flush()
        cold = ask(redknot_server, prompt, ANSWER)
        assert cold.cached == 0 and found.tokens == cold.tokens, name
        agree(replace(found, prompt=prompt), cold, 1e-4)


def test_a_session_cannot_be_segmented_and_an_unknown_one_is_a_400(redknot_server: Server) -> None:
    session = redknot_server.post("/open_session", {"capacity_of_str_len": 10000}).json()
    prompt = noise(random.Random(1), 60)
    segmented = {"custom_params": {"redknot_segments": [10, 40], "redknot_repair": "boundary:4"}, "max_new_tokens": 2}
    for sampling, named, why in (
        (segmented, session, "sessions cannot be segmented"),
        ({"max_new_tokens": 2}, "of nobody", "does not exist"),
    ):
        body = {"input_ids": prompt, "sampling_params": sampling, "session_params": {"id": named}}
        answer = redknot_server.post("/generate", body)
        assert answer.status_code == 400 and why in answer.text, answer.text
    redknot_server.post("/close_session", {"session_id": session}).raise_for_status()
