# SPDX-License-Identifier: Apache-2.0
"""What every kind of draft must leave as it is, asked of a server that drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from redknot_sglang.heads import load_head_map
from tests.serving import harness
from tests.serving.answers import agree, agree_with_oracle, ask_all
from tests.serving.conversations import check_no_leak, make_conversations, play_all
from tests.serving.harness import Server
from tests.serving.maps import oracle_of
from tests.serving.segmented import POLICIES, ask_all_segmented, ask_segmented, make_requests

# float32; what differs is the order of additions.
TOLERANCE = 1e-4


def check_conversations(server: Server, full: bool) -> None:
    """Conversations, some of whose clients leave, get the oracle's answers. full: 60 of them, else 6."""
    oracle = oracle_of(load_head_map(harness.HEAD_MAP))
    answers = play_all(server, make_conversations(7, 60 if full else 6), at_once=6)
    assert any(answer.cached for answer in answers)
    check_no_leak(server)
    answers.sort(key=lambda answer: -answer.cached)
    for answer in answers[: 60 if full else 6]:
        agree_with_oracle(answer, oracle)


def check_segmented(server: Server, plain: Server, answer_tokens: int, full: bool) -> None:
    """Segmented requests, cold, warm and in a batch, get the answers of a server that does not draft. full: 100 of them, else one of each policy."""
    requests = make_requests(
        random.Random("speculation"), 100 if full else len(POLICIES), most=6, longest=300, limit=1300
    )
    references = [answer for answer, _ in ask_all_segmented(plain, requests, answer_tokens, at_once=1)]
    cold = []
    for request in requests:
        server.flush()
        cold.append(ask_segmented(server, request, answer_tokens)[0])
    ways = {"cold": cold}
    for way, at_once in (("warm", 1), ("in a batch", 8)):
        ways[way] = [answer for answer, _ in ask_all_segmented(server, requests, answer_tokens, at_once)]
    check_no_leak(server)
    assert sum(answer.cached for answer in ways["warm"]) > sum(answer.cached for answer in cold)
    for way, answers in ways.items():
        for answer, reference in zip(answers, references, strict=True):
            assert agree(answer, reference, TOLERANCE).tied is None, way


def check_retractions(server: Server, prompts: Sequence[list[int]], answer_tokens: int) -> None:
    """Prompts that the pool cannot answer all at once: some are retracted, and get the oracle's answers."""
    answers = ask_all(server, prompts, answer_tokens, at_once=len(prompts))
    assert any(answer.retractions for answer in answers)
    check_no_leak(server)
    answers.sort(key=lambda answer: -answer.retractions)
    for answer in answers[:2]:
        agree_with_oracle(answer, oracle_of(load_head_map(harness.HEAD_MAP)))
