# SPDX-License-Identifier: Apache-2.0
"""Two data-parallel ranks, each a scheduler with a cache of its own, answer alike, cold and from their caches."""

from __future__ import annotations

import random

import pytest

from tests.serving import harness
from tests.serving.answers import agree, ask
from tests.serving.prompts import noise
from tests.serving.segmented import SegmentedRequest, ask_segmented

pytestmark = pytest.mark.serving

ANSWER, TOLERANCE = 6, 1e-4


def test_both_ranks_answer_alike_and_each_reuses_what_it_has() -> None:
    rng = random.Random("data parallel")
    documents = [noise(rng, length) for length in (90, 150)]
    prompt = [*noise(rng, 20), *documents[0], *documents[1], *noise(rng, 30)]
    segmented = SegmentedRequest(prompt, [20, 110, 110, 260], "blend:0.2")
    exact = noise(rng, 300)
    args = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-segment-length=100", "--dp-size=2"]
    # SGLang deals requests out in turn.
    args.append("--load-balance-method=round_robin")
    with harness.launch(args) as server:
        found = [ask_segmented(server, segmented, ANSWER) for _ in range(4)]
        for answer, report in found[1:]:
            agree(answer, found[0][0], TOLERANCE)
            assert report["segments"] == 2
        reused = [report["reused_tokens"] for _, report in found]
        assert reused[0] == reused[1] == 0 and reused[2] == reused[3] >= 240
        answers = [ask(server, exact, ANSWER) for _ in range(4)]
        for answer in answers[1:]:
            agree(answer, answers[0], TOLERANCE)
        hits = [server.generate(exact, 1)["meta_info"]["redknot"]["cached_tokens"] for _ in range(2)]
        assert min(hits) >= len(exact) - 1
        status = server.get("/redknot/status")
        assert len(status["data_parallel"]) == 2
        assert all(rank["classes"]["global"]["used"] > len(exact) for rank in status["data_parallel"])
