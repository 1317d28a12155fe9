# SPDX-License-Identifier: Apache-2.0
"""Everything at once: random requests of both modes while clients leave, caches are flushed and weights are updated.

No answer may differ from the one that the same request gets alone, from a server with room and an empty cache. Nothing may
hang, and at the end no slot may be held.
"""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from tests.serving import harness
from tests.serving.conversations import check_no_leak
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import noise
from tests.serving.segmented import make_documents, make_request
from tests.serving.shared import SharedServers
from tests.versions import needs_host_tier

pytestmark = pytest.mark.serving

REQUESTS, FULL = 300, 3000
# Of these many different requests all are made: cold answers are asked for one by one.
DIFFERENT, FULL_DIFFERENT = 24, 40
CLIENTS = 12
# What SGLang answers to a request that was aborted between two chunks of its prompt; to others an ordinary answer.
ABORTED = 499
POLICIES = ("none", "boundary:4", "boundary:16", "blend:0.1", "blend:0.3", "question:1", "question:2", None)
# The longest prompt of `make_request` below, its answer, and the segments that it needs beside it.
LIMIT, LONGEST_ANSWER = 1200, 12
FLAGS = ["--redknot", "--redknot-uncertified", "--chunked-prefill-size=128", "--enable-mixed-chunk"]
# A request of 1,200 tokens needs itself, its segments and its answer.
TIGHT = [*FLAGS, "--max-total-tokens=3000", "--redknot-segment-length=100"]
# The same with a host tier, which is fuller than it has room for, too.
TIERS = [*TIGHT, "--enable-hierarchical-cache", "--hicache-ratio=3"]
ROOMY = [*FLAGS, "--max-total-tokens=24000", "--redknot-segment-length=300"]


@dataclass(frozen=True)
class Case:
    """A request's body without its identity, and how often it is sampled."""

    body: dict[str, Any]
    copies: int


@dataclass(frozen=True)
class Answer:
    """Tokens and log-probabilities of one answer."""

    tokens: list[int]
    logprobs: list[float]


def _cases(seed: int, count: int) -> list[Case]:
    rng = random.Random(seed)
    documents = make_documents(rng, 8, longest=300)
    cases = []
    for _ in range(count):
        policy = rng.choice(POLICIES)
        made = make_request(rng, documents, policy or "none", most=5, limit=LIMIT - 200)
        sampling: dict[str, Any] = {
            "temperature": 0,
            "ignore_eos": True,
            "max_new_tokens": rng.choice((1, 4, LONGEST_ANSWER)),
        }
        if policy is not None:
            sampling["custom_params"] = made.params
        copies = 2 if rng.random() < 0.15 else 1
        body = {"input_ids": made.prompt or noise(rng, 3), "sampling_params": {**sampling, "n": copies}}
        cases.append(Case({**body, "return_logprob": True}, copies))
    return cases


def _read(meta: dict[str, Any]) -> Answer:
    entries = meta["output_token_logprobs"]
    return Answer([entry[1] for entry in entries], [entry[0] for entry in entries])


def _ask(server: harness.Server, case: Case, rid: str | None = None, stream: bool = False) -> list[Answer] | None:
    """One answer for each copy; None if the request was aborted."""
    body = {**case.body, **({} if rid is None else {"rid": rid if case.copies == 1 else [rid]})}
    if not stream or case.copies > 1:
        response = server.post("/generate", body)
        if response.status_code == ABORTED:
            return None
        assert response.status_code == 200, response.text
        items = response.json() if case.copies > 1 else [response.json()]
    else:
        items = [_last_of_stream(server, body)]
        if "error" in items[0]:
            assert items[0]["error"]["code"] == ABORTED, items[0]
            return None
    metas = [item["meta_info"] for item in items]
    if any(meta["finish_reason"]["type"] == "abort" for meta in metas):
        return None
    return [_read(meta) for meta in metas]


def _last_of_stream(server: harness.Server, body: dict[str, Any]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    with requests.post(
        server.url + "/generate", json={**body, "stream": True}, stream=True, timeout=harness.REQUEST_TIMEOUT
    ) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                last = json.loads(line[6:])
    return last


class Disturbance:
    """Flushes, weight updates and preloads at random moments, as long as the context is open."""

    def __init__(self, server: harness.Server, seed: int) -> None:
        self._server, self._rng, self._stopped = server, random.Random(seed), threading.Event()
        self._documents = make_documents(self._rng, 8, longest=300)
        self.counts = {"flush": 0, "update": 0, "preload": 0}
        self._thread = threading.Thread(target=self._run)
        self.failure: Exception | None = None

    def __enter__(self) -> Disturbance:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        kinds: list[str] = []
        while not self._stopped.wait(self._rng.uniform(0.2, 1.2)):
            if not kinds:
                # In any order, and none is left out for long.
                kinds = self._rng.sample(("flush", "flush", "update", "preload", "preload"), 5)
            try:
                self._one(kinds.pop())
            except Exception as error:  # The test thread raises it.
                self.failure = error
                return

    def _one(self, kind: str) -> None:
        if kind == "flush":
            # Refused while clients wait, without a trace.
            assert self._server.post("/flush_cache", {}).status_code in (200, 400)
        elif kind == "update":
            answer = self._server.post("/update_weights_from_disk", {"model_path": str(harness.MODEL)})
            assert answer.status_code == 200, answer.text
        else:
            segments = [document for document in self._documents if document][:3]
            repair = self._rng.choice(("boundary:4", "blend:0.1"))
            answer = self._server.post("/redknot/segments", {"segments": segments, "repair": repair})
            assert answer.status_code == 200, answer.text
        self.counts[kind] += 1


@pytest.fixture(scope="module")
def with_retrieval(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flag of a map that all repair policies can be served with."""
    return f"--redknot-head-map={save_retrieval_map(tmp_path_factory.mktemp('map'))}"


@pytest.fixture(scope="module")
def cold(servers: SharedServers, with_retrieval: str, full: bool) -> tuple[list[Case], list[list[Answer]]]:
    """All cases and their answers, each from an empty cache with nobody else there."""
    cases, answers = _cases(1, FULL_DIFFERENT if full else DIFFERENT), []
    server = servers.get(*ROOMY, with_retrieval)
    for case in cases:
        answer = _ask(server, case)
        assert answer is not None
        answers.append(answer)
        server.flush()
    return cases, answers


@pytest.mark.parametrize(
    "flags",
    [TIGHT, pytest.param(TIERS, marks=needs_host_tier), pytest.param(ROOMY, marks=pytest.mark.full)],
    ids=["pool of 1.2 requests", "host tier behind it", "room"],
)
def test_answers_are_the_cold_ones_whatever_happens(
    flags: list[str],
    servers: SharedServers,
    with_retrieval: str,
    cold: tuple[list[Case], list[list[Answer]]],
    full: bool,
) -> None:
    cases, expected = cold
    count = (FULL if full else REQUESTS) // 2
    rng = random.Random(len(flags))
    order = [rng.randrange(len(cases)) for _ in range(count)]
    leaves = [rng.random() < 0.15 for _ in order]
    delays = [rng.uniform(0.0, 1.5) for _ in order]
    streams = [rng.random() < 0.3 for _ in order]
    server = servers.get(*flags, with_retrieval)

    def play(at: int) -> list[Answer] | None:
        rid = f"stress-{at}-of-{count}"
        if not leaves[at]:
            return _ask(server, cases[order[at]], rid, streams[at])
        timer = threading.Timer(delays[at], server.post, ("/abort_request", {"rid": rid}))
        timer.start()
        try:
            return _ask(server, cases[order[at]], rid, streams[at])
        finally:
            timer.join()

    begin = time.monotonic()
    with Disturbance(server, seed=3) as disturbance, ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(play, range(count)))
    assert disturbance.failure is None, disturbance.failure
    assert min(disturbance.counts.values()) > 0, disturbance.counts
    wrong = [at for at, answer in enumerate(answers) if answer is not None and not _equal(answer, expected[order[at]])]
    assert not wrong, [(at, cases[order[at]].body["sampling_params"]) for at in wrong]
    gone = [at for at, answer in enumerate(answers) if answer is None]
    assert 0 < len(gone) < count // 4 and all(leaves[at] for at in gone)
    print(f"{count} requests, {len(gone)} aborted, {disturbance.counts}, {time.monotonic() - begin:.0f} s")
    check_no_leak(server)
    server.flush()
    classes = server.get("/redknot/status")["classes"]
    assert classes["global"]["used"] == classes["local"]["used"] == 0


def _equal(got: list[Answer], expected: list[Answer]) -> bool:
    return all(
        mine.tokens == theirs.tokens and mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        for mine, theirs in zip(got, expected, strict=True)
    )
