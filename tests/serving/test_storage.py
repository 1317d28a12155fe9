# SPDX-License-Identifier: Apache-2.0
"""The storage tier in real servers: what one server stored as files gives a restarted one the answers of an empty cache.

Two servers start, one behind the other; the second one then meets bad objects, a store that hangs and one that cannot be written. The
memory check counts every slot of the device after every step (harness.py).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests as http

from tests.serving import harness, stored
from tests.serving.answers import Answer
from tests.serving.conversations import settle
from tests.serving.harness import Server
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import noise
from tests.serving.stored import (
    PATIENCE,
    POLICIES,
    TENANT,
    THRESHOLD,
    Question,
    is_healthy,
    same,
    store,
    wait_for_store,
)
from tests.versions import needs_host_tier

pytestmark = [pytest.mark.serving, needs_host_tier]


@dataclass(frozen=True)
class Restarted:
    """A server over the files that another one has left. folder: of the files. questions, cold: what was asked, and answers to it from
    an empty cache. written: objects that the first server wrote.
    """

    server: Server
    folder: Path
    questions: dict[str, list[Question]]
    cold: dict[str, Answer]
    written: int


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    """Starts both servers; the first one ends before the second one starts."""
    folder = tmp_path_factory.mktemp("storage")
    files = folder / "objects"
    extra = {"prefetch_threshold": THRESHOLD, "prefetch_timeout_base": PATIENCE}
    flags = (
        *stored.FLAGS,
        f"--redknot-head-map={save_retrieval_map(folder)}",
        "--hicache-storage-backend=file",
        f"--hicache-storage-backend-extra-config={json.dumps(extra)}",
    )
    env = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(files)}
    rng = random.Random("storage")
    questions = {"exact": stored.exact_questions(rng)}
    questions |= {policy: stored.segmented_questions(rng, policy) for policy in POLICIES}
    with harness.launch(flags, env) as first:
        cold = stored.cold_answers(first, [question for some in questions.values() for question in some])
        for some in questions.values():
            some[0].ask(first, TENANT)
        settle(first)
        written = wait_for_store(first)["objects"]["written"]
    with harness.launch(flags, env) as second:
        yield Restarted(second, files, questions, cold, written)


def test_exact_prompts_come_back_after_a_restart(restarted: Restarted) -> None:
    server = restarted.server
    assert restarted.written > 50 and store(server)["objects"] == {"written": 0, "read": 0}
    prompt, turn, branch = restarted.questions["exact"]
    answer, meta = prompt.ask(server, TENANT)
    same(answer, restarted.cold["prompt"])
    assert meta["cached_tokens_details"] == {
        "device": 0,
        "host": 0,
        "storage": 599,
        "storage_backend": "HiCacheFile",
    }
    server.flush()
    answer, meta = turn.ask(server, TENANT)
    same(answer, restarted.cold["turn"])
    assert meta["cached_tokens_details"]["storage"] == 600
    same(branch.ask(server, TENANT)[0], restarted.cold["branch"])
    found = store(server)
    assert found["lookups"]["hit"] == 2 and found["tokens"] == 1200 and not any(found["refused"].values())


@pytest.mark.parametrize("policy", POLICIES)
def test_documents_come_back_after_a_restart(restarted: Restarted, policy: str) -> None:
    """In the order in which they were stored and in another one, without a row of them being computed by itself."""
    server = restarted.server
    for question in restarted.questions[policy]:
        server.flush()
        before, rows = store(server), isolated_rows(server)
        answer, _ = question.ask(server, TENANT)
        same(answer, restarted.cold[question.name])
        after = store(server)
        assert after["lookups"]["hit"] - before["lookups"]["hit"] >= 3
        assert after["tokens"] - before["tokens"] >= 660
        # Text that asks, and text between documents, may be computed by itself; documents may not.
        assert isolated_rows(server) - rows < 140


def isolated_rows(server: Server) -> float:
    """Rows that isolated prefills have computed."""
    return metric(server, r'redknot:segment_rows_total\{.*kind="isolated".*\}')


def metric(server: Server, pattern: str) -> float:
    """Sum of the metrics whose name and labels match."""
    text = http.get(server.url + "/metrics", timeout=60).text
    return sum(float(value) for value in re.findall(f"^{pattern} (.*)$", text, re.MULTILINE))


def test_documents_that_are_wanted_ahead_of_time_come_from_the_store(restarted: Restarted) -> None:
    server, question = restarted.server, restarted.questions["boundary:16"][0]
    assert question.segmented is not None
    start, end = question.segmented.offsets[:2]
    server.flush()
    before = store(server)
    body = {"segments": [question.prompt[start:end]], "repair": "boundary:16", "extra_key": TENANT}
    answer = server.post("/redknot/segments", body)
    assert answer.status_code == 200, answer.text
    assert store(server)["tokens"] - before["tokens"] == end - start
    (listed,) = server.get("/redknot/segments")
    assert listed["resident_tokens"] == end - start
    http.delete(server.url + "/redknot/segments", timeout=60).raise_for_status()


def test_no_tenant_finds_what_another_stored(restarted: Restarted) -> None:
    server = restarted.server
    server.flush()
    before = store(server)
    for some in restarted.questions.values():
        answer, meta = some[0].ask(server, "another")
        same(answer, restarted.cold[some[0].name])
        if some[0].segmented is None:
            assert meta["cached_tokens"] == 0
    after = store(server)
    assert after["objects"]["read"] == before["objects"]["read"]
    assert after["lookups"]["hit"] == before["lookups"]["hit"]
    assert after["lookups"]["miss"] > before["lookups"]["miss"]


def test_metrics_say_what_the_status_says(restarted: Restarted) -> None:
    server = restarted.server
    prompt = restarted.questions["exact"][0]
    server.flush()
    prompt.ask(server, TENANT)
    wait_for_store(server)
    # They follow the tree, which changes hands of slots with each request.
    prompt.ask(server, TENANT)
    settle(server)
    found = store(server)
    for name, label, kinds in (
        ("objects", "move", found["objects"]),
        ("bytes", "move", found["bytes"]),
        ("lookups", "result", found["lookups"]),
    ):
        for kind, value in kinds.items():
            assert metric(server, rf'redknot:store_{name}_total\{{.*{label}="{kind}".*\}}') == value, (name, kind)
    assert found["objects"]["read"] > 0


def test_bad_objects_are_not_used_and_said_once(restarted: Restarted) -> None:
    server, prompt = restarted.server, restarted.questions["exact"][0]
    names = sorted(restarted.folder.iterdir())
    kept = {path: path.read_bytes() for path in names}
    try:
        for kind, reason in (("cut", "cut"), ("bit", "garbled")):
            for path in names:
                data = kept[path]
                changed = data[:-3] if kind == "cut" else bytes([*data[:-1], data[-1] ^ 1])
                path.write_bytes(changed)
            for _ in range(2):
                server.flush()
                before = store(server)
                same(prompt.ask(server, TENANT)[0], restarted.cold["prompt"])
                settle(server)
                after = wait_for_store(server)
                assert after["tokens"] == before["tokens"]
                assert after["refused"][reason] == before["refused"][reason] + 1
                # It is gone, and what was computed instead is there; the others are as bad as before.
                assert after["objects"]["written"] == before["objects"]["written"] + 1
            said = [line for line in server.log_text().splitlines() if f"is not used: {reason}" in line]
            assert len(said) == 1
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    server.flush()
    answer, meta = prompt.ask(server, TENANT)
    same(answer, restarted.cold["prompt"])
    assert meta["cached_tokens_details"]["storage"] == 599


def test_a_store_that_hangs_holds_no_request_longer_than_asked(restarted: Restarted) -> None:
    """Reading a named pipe waits for somebody who writes to it, as a file of a server that is gone may."""
    server, (prompt, turn, _) = restarted.server, restarted.questions["exact"]
    server.flush()
    kept = {path: path.read_bytes() for path in sorted(restarted.folder.iterdir())}
    for path in kept:
        path.unlink()
        os.mkfifo(path)
    try:
        before, begin = store(server), time.monotonic()
        same(prompt.ask(server, TENANT)[0], restarted.cold["prompt"])
        waited = time.monotonic() - begin
        assert PATIENCE <= waited < PATIENCE + 30
        assert store(server)["lookups"]["late"] == before["lookups"]["late"] + 1
        assert store(server)["state"] == "failing"
        # While it rests nobody waits.
        same(turn.ask(server, TENANT)[0], restarted.cold["turn"])
        assert is_healthy(server)
    finally:
        # Whoever hangs gets the end of the file; then the files come back.
        for path in kept:
            with suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(1)
        for path, data in kept.items():
            path.unlink(missing_ok=True)
            path.write_bytes(data)
    assert comes_back(server, prompt) == 599
    same(prompt.ask(server, TENANT)[0], restarted.cold["prompt"])
    assert store(server)["state"] == "working"


def comes_back(server: Server, prompt: Question) -> int:
    """Tokens of a prompt that come from the store, once it is asked again."""
    for _ in range(20):
        server.flush()
        details = prompt.ask(server, TENANT)[1]["cached_tokens_details"]
        if details and details["storage"]:
            return int(details["storage"])
        time.sleep(1)
    return 0


def test_a_store_that_cannot_be_written_stops_nobody(restarted: Restarted) -> None:
    server, rng = restarted.server, random.Random("full")
    away = restarted.folder.with_name("away")
    restarted.folder.rename(away)
    restarted.folder.write_text("no folder")
    try:
        before = store(server)
        for _ in range(3):
            server.flush()
            same(restarted.questions["exact"][0].ask(server, TENANT)[0], restarted.cold["prompt"])
            assert is_healthy(server)
        found = wait_for_store(server)
        assert found["state"] == "failing" and found["failures"]["write"] > before["failures"]["write"]
    finally:
        restarted.folder.unlink()
        away.rename(restarted.folder)
    written = store(server)["objects"]["written"]
    for _ in range(60):
        server.generate(noise(rng, 200), 1)
        if store(server)["objects"]["written"] > written:
            break
        time.sleep(0.5)
    assert wait_for_store(server)["state"] == "working" and store(server)["objects"]["written"] > written
