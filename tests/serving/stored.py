# SPDX-License-Identifier: Apache-2.0
"""What one server computes and stores, and what another one finds of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import requests as http

from tests.serving.answers import Answer, read_answer
from tests.serving.harness import Server
from tests.serving.prompts import noise
from tests.serving.segmented import SegmentedRequest

ANSWER = 6
HIT_TOLERANCE = 1e-4
POLICIES = ("none", "boundary:16", "blend:0.1", "question:2")
FLAGS = (
    "--redknot",
    "--redknot-segment-length=300",
    "--chunked-prefill-size=128",
    "--max-total-tokens=4000",
    "--enable-mixed-chunk",
    "--enable-metrics",
    "--enable-hierarchical-cache",
    "--hicache-ratio=8",
)
# What is worth fetching, and how long a request waits for the store, in seconds.
THRESHOLD, PATIENCE = 32, 8
TENANT = "kept"


@dataclass(frozen=True)
class Question:
    """A prompt, segmented or not."""

    name: str
    prompt: list[int]
    segmented: SegmentedRequest | None = None

    def ask(self, server: Server, tenant: str) -> tuple[Answer, dict[str, Any]]:
        """The answer, and its `meta_info`."""
        sampling = {} if self.segmented is None else {"custom_params": self.segmented.params}
        body = server.generate(
            self.prompt, ANSWER, sampling_params=sampling, extra_key=tenant, return_logprob=True, top_logprobs_num=2
        )
        return read_answer(self.prompt, body), body["meta_info"]


def same(got: Answer, cold: Answer) -> None:
    """The answers are one: every token, and log-probabilities but for rounding."""
    assert got.tokens == cold.tokens
    assert got.logprobs == pytest.approx(cold.logprobs, abs=HIT_TOLERANCE)


def exact_questions(rng: random.Random) -> list[Question]:
    """A prompt, one that goes on from it, and one that shares its beginning with it only."""
    prompt = noise(rng, 600)
    return [
        Question("prompt", prompt),
        Question("turn", prompt + noise(rng, 150)),
        Question("branch", prompt[:330] + noise(rng, 200)),
    ]


def segmented_questions(rng: random.Random, policy: str) -> list[Question]:
    """The same three documents in two orders."""
    documents = [noise(rng, length) for length in (300, 220, 140)]
    lead, text = noise(rng, 7), noise(rng, 20)
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        prompt, offsets = list(lead), list[int]()
        for number in order:
            offsets += [len(prompt), len(prompt) + len(documents[number])]
            prompt = prompt + documents[number]
        request = SegmentedRequest(prompt + text, offsets, policy)
        found.append(Question(f"{policy} {order}", request.prompt, request))
    return found


def cold_answers(server: Server, questions: list[Question]) -> dict[str, Answer]:
    """Answers from an empty cache: each question is asked by a tenant of its own, so that nothing is shared."""
    return {question.name: question.ask(server, f"cold {question.name}")[0] for question in questions}


def store(server: Server) -> dict[str, Any]:
    """What the status says of the store."""
    found: dict[str, Any] = server.get("/redknot/status")["tiers"]["store"]
    return found


def wait_for_store(server: Server, is_so: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
    """Wait until nothing is on its way to the store, or until its status is as given; returns the status."""
    for _ in range(300):
        found = store(server)
        if is_so(found) if is_so is not None else not any(found["pending"].values()):
            return found
        time.sleep(0.1)
    raise AssertionError(f"the store does not come to that: {found}")


def is_healthy(server: Server) -> bool:
    """Whether the server says that it is well."""
    return http.get(server.url + "/health", timeout=30).status_code == 200
