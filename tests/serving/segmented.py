# SPDX-License-Identifier: Apache-2.0
"""Random segmented requests, and asking a server for their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.serving.answers import Answer, read_answer
from tests.serving.harness import HEAD_MAP, Server
from tests.serving.prompts import noise, text

# Flags of a server of the shipped map that has room for 300 tokens of segments beside each request.
SEGMENTS = ("--redknot", f"--redknot-head-map={HEAD_MAP}", "--redknot-segment-length=300")
# A pool of a few requests, and prefill that shares batches with decoding.
SMALL_POOL = 6000
SMALL = (
    *SEGMENTS,
    "--chunked-prefill-size=128",
    f"--max-total-tokens={SMALL_POOL}",
    "--enable-mixed-chunk",
    "--enable-metrics",
)
POLICIES = ("none", "boundary:16", "blend:0.05", "blend:0.15")
LENGTHS = (16, 30, 64, 130, 300, 700, 1500)


@dataclass(frozen=True)
class SegmentedRequest:
    """A prompt with its segments: flat offsets, as in `redknot_segments`."""

    prompt: list[int]
    offsets: list[int]
    policy: str

    @property
    def params(self) -> dict[str, Any]:
        """`custom_params` that ask for it."""
        return {"redknot_segments": self.offsets, "redknot_repair": self.policy}


def make_documents(rng: random.Random, count: int, longest: int = 1500) -> list[list[int]]:
    """Documents that requests share: of all lengths, some with a common beginning, one the beginning of another."""
    lengths = [length for length in LENGTHS if length <= longest]
    documents = [noise(rng, rng.choice(lengths)) for _ in range(count)]
    documents += [documents[0][: len(documents[0]) // 2], documents[1] + noise(rng, 40), noise(rng, 1), []]
    documents.append(documents[2][:20] + noise(rng, 50))
    return [document[:longest] for document in documents]


def make_request(
    rng: random.Random, documents: Sequence[list[int]], policy: str, most: int, limit: int
) -> SegmentedRequest:
    """1 to `most` documents in any order, repeated and adjacent ones among them, with or without text in between."""
    prompt = noise(rng, rng.choice((0, 3, 40, 200))) if rng.random() < 0.7 else text(rng)[:60]
    offsets: list[int] = []
    for _ in range(rng.randint(1, most)):
        document = rng.choice(documents)
        if len(prompt) + len(document) > limit:
            continue
        offsets += [len(prompt), len(prompt) + len(document)]
        prompt = prompt + document
        if rng.random() < 0.2:
            offsets += [len(prompt), len(prompt) + len(document)]
            prompt = prompt + document
        if rng.random() < 0.3:
            prompt = prompt + noise(rng, rng.choice((1, 5, 30)))
    tail = [] if rng.random() < 0.1 and prompt else noise(rng, rng.choice((1, 8, 60, 150)))
    return SegmentedRequest(prompt + tail, offsets, policy)


def make_requests(rng: random.Random, count: int, most: int, longest: int, limit: int) -> list[SegmentedRequest]:
    """`count` requests over documents of up to `longest` tokens, all policies in turn."""
    documents = make_documents(rng, 8, longest)
    return [make_request(rng, documents, POLICIES[i % len(POLICIES)], most, limit) for i in range(count)]


def make_choosing_requests(rng: random.Random, count: int, longest: int, limit: int) -> list[SegmentedRequest]:
    """Random requests under `question`, with one of a few leads or without, up to nine documents, text between some of them, and text behind them."""
    documents = [document for document in make_documents(rng, 8, longest) if document]
    leads = [[], noise(rng, 3), noise(rng, 40), text(rng)[:60]]
    found = []
    for number in range(count):
        prompt = list(rng.choice(leads))
        offsets: list[int] = []
        for document in rng.sample(documents, rng.randint(2, 9)):
            if len(prompt) + len(document) <= limit:
                offsets += [len(prompt), len(prompt) + len(document)]
                prompt = prompt + document
                prompt = prompt + (noise(rng, 5) if rng.random() < 0.2 else [])
        found.append(
            SegmentedRequest(prompt + noise(rng, rng.choice((1, 8, 60))), offsets, f"question:{number % 3 + 1}")
        )
    return found


def kept(request: SegmentedRequest, report: dict[str, Any]) -> list[int]:
    """The prompt that is left according to the report."""
    pairs = list(zip(request.offsets[::2], request.offsets[1::2], strict=True))
    gone = {at for i, pair in enumerate(pairs) if i not in report["chosen_segments"] for at in range(*pair)}
    return [token for at, token in enumerate(request.prompt) if at not in gone]


def ask_segmented(server: Server, request: SegmentedRequest, length: int) -> tuple[Answer, dict[str, Any]]:
    """The answer and `meta_info.redknot`."""
    sampling = {"custom_params": request.params}
    body = server.generate(request.prompt, length, sampling_params=sampling, return_logprob=True, top_logprobs_num=2)
    return read_answer(request.prompt, body), body["meta_info"]["redknot"]


def ask_all_segmented(
    server: Server, requests: Sequence[SegmentedRequest], length: int, at_once: int
) -> list[tuple[Answer, dict[str, Any]]]:
    """All answers, in order, with `at_once` requests in flight."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda request: ask_segmented(server, request, length), requests))
