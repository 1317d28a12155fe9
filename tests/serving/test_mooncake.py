# SPDX-License-Identifier: Apache-2.0
"""Two servers that share a Mooncake Store over TCP: the second one finds what the first one computed, and both outlive the master."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.serving import harness, mooncake, stored
from tests.serving.answers import Answer
from tests.serving.conversations import settle
from tests.serving.harness import Server
from tests.serving.maps import save_retrieval_map
from tests.serving.mooncake import Master
from tests.serving.prompts import noise
from tests.serving.stored import TENANT, THRESHOLD, Question, is_healthy, same, store, wait_for_store

pytestmark = [pytest.mark.serving, pytest.mark.pinned]

# Seconds for which a request waits for the store: what comes too late on a busy machine is computed, and then nothing was found.
WAIT = 20

POLICIES = ("none", "boundary:16", "question:2")


@dataclass(frozen=True)
class Pair:
    """Two servers over one store, of which the first has answered questions. cold: answers from an empty cache."""

    first: Server
    second: Server
    master: Master
    questions: dict[str, list[Question]]
    cold: dict[str, Answer]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Starts the master and both servers."""
    folder = tmp_path_factory.mktemp("mooncake")
    master = Master(folder)
    extra = {
        "prefetch_threshold": THRESHOLD,
        "prefetch_timeout_base": WAIT,
        "master_server_address": f"127.0.0.1:{master.port}",
        "metadata_server": "P2PHANDSHAKE",
        "protocol": "tcp",
        "local_hostname": "127.0.0.1",
        "global_segment_size": 256 << 20,
    }
    flags = (
        *stored.FLAGS,
        f"--redknot-head-map={save_retrieval_map(folder)}",
        "--hicache-storage-backend=mooncake",
        f"--hicache-storage-backend-extra-config={json.dumps(extra)}",
    )
    rng = random.Random("mooncake")
    questions = {"exact": stored.exact_questions(rng)}
    questions |= {policy: stored.segmented_questions(rng, policy) for policy in POLICIES}
    with ExitStack() as stack:
        stack.callback(master.kill)
        master.start()
        with ThreadPoolExecutor(2) as pool:
            contexts = [harness.launch(flags, mooncake.environment()) for _ in range(2)]
            first, second = pool.map(stack.enter_context, contexts)
        cold = stored.cold_answers(first, [question for some in questions.values() for question in some])
        for some in questions.values():
            some[0].ask(first, TENANT)
        settle(first)
        assert wait_for_store(first)["objects"]["written"] > 50
        yield Pair(first, second, master, questions, cold)


def test_a_second_server_finds_a_prompt(pair: Pair) -> None:
    prompt, turn, branch = pair.questions["exact"]
    answer, meta = prompt.ask(pair.second, TENANT)
    same(answer, pair.cold["prompt"])
    assert meta["cached_tokens_details"]["storage"] == 599
    assert meta["cached_tokens_details"]["storage_backend"] == "MooncakeStore"
    for question in (turn, branch):
        same(question.ask(pair.second, TENANT)[0], pair.cold[question.name])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_second_server_finds_documents(pair: Pair, policy: str) -> None:
    for question in pair.questions[policy]:
        pair.second.flush()
        before = store(pair.second)
        same(question.ask(pair.second, TENANT)[0], pair.cold[question.name])
        after = store(pair.second)
        assert after["tokens"] - before["tokens"] >= 660


def test_no_tenant_finds_what_another_server_s_tenant_stored(pair: Pair) -> None:
    pair.second.flush()
    before = store(pair.second)
    for some in pair.questions.values():
        same(some[0].ask(pair.second, "another")[0], pair.cold[some[0].name])
    after = store(pair.second)
    assert after["objects"]["read"] == before["objects"]["read"]
    assert after["lookups"]["miss"] > before["lookups"]["miss"]


def test_both_servers_outlive_the_master(pair: Pair) -> None:
    """They compute while it is gone, and store and find again when another one is there."""
    prompt = pair.questions["exact"][0]
    pair.master.kill()
    for server in (pair.first, pair.second):
        server.flush()
        begin = time.monotonic()
        same(prompt.ask(server, TENANT)[0], pair.cold["prompt"])
        assert time.monotonic() - begin < WAIT + 30
        # It rests: nobody waits.
        same(pair.questions["exact"][2].ask(server, TENANT)[0], pair.cold["branch"])
        assert is_healthy(server)
        assert wait_for_store(server, lambda found: found["state"] == "failing")["failures"]["read"] > 0
    pair.master.start()
    rng = random.Random("again")
    found = 0
    for _ in range(60):
        written = store(pair.first)["objects"]["written"]
        fresh = noise(rng, 200)
        pair.first.generate(fresh, 1)
        wait_for_store(pair.first)
        assert is_healthy(pair.first) and is_healthy(pair.second)
        if store(pair.first)["objects"]["written"] > written:
            found = pair.second.generate(fresh, 1)["meta_info"]["cached_tokens"]
        if found:
            break
        time.sleep(1)
    assert found == 199
    assert wait_for_store(pair.first)["state"] == "working"
