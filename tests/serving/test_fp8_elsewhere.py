# SPDX-License-Identifier: Apache-2.0
"""KV of 8-bit floats that goes to host memory, to a store and to a decode server comes back as it went."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.serving import apart, harness, stored
from tests.serving.answers import agree
from tests.serving.apart import Request
from tests.serving.conversations import check_no_leak, settle
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import mixed, noise
from tests.serving.segmented import make_requests
from tests.serving.stored import PATIENCE, POLICIES, TENANT, THRESHOLD, store, wait_for_store
from tests.serving.test_fp8 import HIT_TOLERANCE, KV

pytestmark = pytest.mark.serving

ANSWER = 12


@pytest.mark.pinned
def test_host_memory_and_a_store_give_back_what_they_were_given(tmp_path: Path) -> None:
    """Answers from the host tier, and of a second server from the first one's files, are those of an empty cache."""
    extra = {"prefetch_threshold": THRESHOLD, "prefetch_timeout_base": PATIENCE}
    flags = (
        *stored.FLAGS,
        KV,
        f"--redknot-head-map={save_retrieval_map(tmp_path)}",
        "--hicache-storage-backend=file",
        f"--hicache-storage-backend-extra-config={json.dumps(extra)}",
    )
    env = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(tmp_path / "objects")}
    rng = random.Random("fp8")
    questions = [stored.exact_questions(rng)[0]]
    questions += [question for policy in POLICIES for question in stored.segmented_questions(rng, policy)]
    with harness.launch(flags, env) as first:
        cold = stored.cold_answers(first, questions)
        for question in questions:
            question.ask(first, TENANT)
        for _ in range(8):
            first.generate(noise(rng, 700), 1)
        settle(first)
        before = first.get("/redknot/status")["tiers"]["copied_tokens"]["loaded_back"]["global"]
        for question in questions:
            agree(question.ask(first, TENANT)[0], cold[question.name], HIT_TOLERANCE)
        settle(first)
        assert first.get("/redknot/status")["tiers"]["copied_tokens"]["loaded_back"]["global"] > before
        assert wait_for_store(first)["objects"]["written"] > 50
    with harness.launch(flags, env) as second:
        for question in questions:
            second.flush()
            agree(question.ask(second, TENANT)[0], cold[question.name], HIT_TOLERANCE)
        found = store(second)
        assert found["lookups"]["hit"] >= len(questions) and not any(found["refused"].values())


@apart.needs_host_memory
def test_a_decode_server_answers_as_one_server_does() -> None:
    flags = (
        "--redknot",
        f"--redknot-head-map={harness.HEAD_MAP}",
        "--redknot-segment-length=100",
        "--chunked-prefill-size=128",
        "--max-total-tokens=12000",
        KV,
    )
    rng = random.Random("fp8 apart")
    sent: list[Request] = [mixed(rng, length) for length in (2, 5, 131, 260, 700)]
    sent += make_requests(rng, 4, most=4, longest=200, limit=600)
    with harness.launch(flags) as single:
        expected = [apart.alone(single, request, ANSWER) for request in sent]
    with apart.launch_pair(*flags) as pair:
        # One at a time, in the batches that the server alone had: which requests share one decides the order of sums, and that
        # now and then another 8-bit number.
        for _ in ("cold", "warm"):
            for answer, reference in zip(pair.ask_all(sent, ANSWER, at_once=1), expected, strict=True):
                agree(answer, reference, HIT_TOLERANCE)
        for answer, reference in zip(pair.ask_all(sent, ANSWER, at_once=3), expected, strict=True):
            agree(answer, reference, 2 * HIT_TOLERANCE)
        for server in (pair.prefill, pair.decode):
            check_no_leak(server)
