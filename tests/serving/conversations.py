# SPDX-License-Identifier: Apache-2.0
"""Randomised conversations: shared prefixes, branches in the middle of nodes, clients that hang up."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests

from tests.serving.answers import Answer, ask
from tests.serving.harness import REQUEST_TIMEOUT, Server
from tests.serving.prompts import noise, text

ROOTS = 6
SETTLE_TIMEOUT = 60.0


@dataclass(frozen=True)
class Turn:
    """What a client does next.

    added: tokens it appends. length: tokens of the answer. hang_up: tokens after which it leaves, or None.
    keep: share of the conversation that the next turn goes on from; below 1 it branches off in the middle.
    """

    added: list[int]
    length: int
    hang_up: int | None
    keep: float


@dataclass(frozen=True)
class Conversation:
    """start: a prefix that several conversations share."""

    start: list[int]
    turns: list[Turn]


def make_conversations(seed: int, count: int) -> list[Conversation]:
    """The same conversations for the same seed."""
    rng = random.Random(seed)
    roots = [noise(rng, length) for length in (3, 40, 200)] + [text(rng) for _ in range(ROOTS - 3)]
    return [_conversation(rng, roots) for _ in range(count)]


def _conversation(rng: random.Random, roots: Sequence[list[int]]) -> Conversation:
    root = rng.choice(roots)
    cut = rng.randrange(1, len(root) + 1) if rng.random() < 0.4 else len(root)
    return Conversation(root[:cut], [_turn(rng) for _ in range(rng.choice((1, 2, 3)))])


def _turn(rng: random.Random) -> Turn:
    length = rng.choice((1, 5, 20, 60, 100))
    # Whoever leaves does so early: an answer that is over cannot be left.
    leaves = length > 1 and rng.random() < 0.2
    return Turn(
        added=noise(rng, rng.choice((1, 3, 17, 60, 200, 400))),
        length=length,
        hang_up=rng.randrange(1, length // 2 + 1) if leaves else None,
        keep=rng.random() if rng.random() < 0.3 else 1.0,
    )


def play_all(server: Server, conversations: Sequence[Conversation], at_once: int) -> list[Answer]:
    """All answers of all conversations, `at_once` clients at a time.

    Raises AssertionError if no client left in the middle of an answer: some are meant to.
    """
    left: list[bool] = []
    with ThreadPoolExecutor(at_once) as pool:
        played = list(pool.map(lambda conversation: _play(server, conversation, left), conversations))
    assert any(left), "no client hung up"
    return [answer for answers in played for answer in answers]


def _play(server: Server, conversation: Conversation, left: list[bool]) -> list[Answer]:
    """The answers that were waited for; `left` gets whether an answer went on when its client hung up."""
    answers, said = [], list(conversation.start)
    for turn in conversation.turns:
        said = said + turn.added
        if turn.hang_up is not None:
            left.append(_hang_up(server, said, turn.length, turn.hang_up))
            continue
        answers.append(ask(server, said, turn.length))
        said = said + answers[-1].tokens
        said = said[: max(1, int(len(said) * turn.keep))]
    return answers


def _hang_up(server: Server, prompt: list[int], length: int, tokens: int) -> bool:
    """Start a stream and drop the connection once it has brought `tokens` tokens; whether the answer went on."""
    sampling = {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
    body: dict[str, Any] = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    with requests.post(server.url + "/generate", json=body, stream=True, timeout=REQUEST_TIMEOUT) as stream:
        stream.raise_for_status()
        for line in stream.iter_lines():
            if line.startswith(b"data: {"):
                meta = json.loads(line.removeprefix(b"data: "))["meta_info"]
                if meta["completion_tokens"] >= tokens:
                    return meta["finish_reason"] is None
    raise AssertionError(f"a stream ended before its token {tokens}")


def settle(server: Server) -> None:
    """Wait until the server is idle: the tree holds every used slot. Raises AssertionError with the last status."""
    _wait_for(
        server, lambda used, tree: used == tree["evictable"] and tree["protected"] == 0, "the tree holds all slots"
    )


def check_no_leak(server: Server) -> None:
    """Wait until the server is idle; then the tree holds every used slot, and after a flush no slot is used.

    Raises AssertionError with the last status if that does not come true.
    """
    settle(server)
    server.flush()
    _wait_for(server, lambda used, tree: used == 0 and tree["evictable"] == 0, "no slot is used after a flush")


def _wait_for(server: Server, holds: Callable[[int, dict[str, int]], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        status = server.get("/redknot/status")
        classes, tree = status["classes"], status["tree"]
        if all(holds(classes[name]["used"], tree[name]) for name in classes):
            return
        assert time.monotonic() < deadline, f"not true within {SETTLE_TIMEOUT:.0f} s: {what}; {classes} {tree}"
        time.sleep(0.2)
