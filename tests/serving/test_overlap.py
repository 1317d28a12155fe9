# SPDX-License-Identifier: Apache-2.0
"""Segmented requests under overlap scheduling, in which the scheduler makes a batch before it has looked at the one before."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.serving import harness
from tests.serving.answers import agree
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import noise
from tests.serving.segmented import ask_all_segmented, ask_segmented, make_choosing_requests, make_requests

pytestmark = pytest.mark.serving

ANSWER = 4
HIT_TOLERANCE = 1e-4
# On a GPU it is the default.
BASE = [flag for flag in harness.FLAGS if flag != "--disable-overlap-schedule"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = save_retrieval_map(tmp_path_factory.mktemp("map"))
    flags = ("--redknot", f"--redknot-head-map={file}", "--redknot-segment-length=300", "--chunked-prefill-size=1024")
    with harness.launch(flags, base=BASE) as found:
        yield found


def test_a_hit_never_changes_an_answer_and_a_lone_question_waits_for_no_result(server: Server, full: bool) -> None:
    rng = random.Random("overlap")
    requests = make_choosing_requests(rng, 40 if full else 6, longest=700, limit=2500)
    # The same documents with other questions: then only the question is missing.
    requests += [replace(each, prompt=each.prompt[: each.offsets[-1]] + noise(rng, 30)) for each in requests]
    cold = []
    for request in requests:
        server.flush()
        cold.append(ask_segmented(server, request, ANSWER))
    server.flush()
    ways = {"warming": ask_all_segmented(server, requests, ANSWER, at_once=1)}
    # What is left of a prompt is prefilled while SGLang has the question's own prefill in its books.
    alone = re.compile(r"Prefill batch.*#running-req: 1, #queue-req: 0")
    choosing = [each for each, (_, report) in zip(requests, cold, strict=True) if chooses(report)]
    assert len(alone.findall(server.log_text())) >= len(choosing) // 2 > 1
    ways["warm"] = ask_all_segmented(server, requests, ANSWER, at_once=1)
    server.flush()
    ways["cold in a batch"] = ask_all_segmented(server, requests, ANSWER, at_once=16)
    check_no_leak(server)
    assert all(report["cached_tokens"] == 0 for _, report in cold)
    for way, answers in ways.items():
        for (answer, report), (reference, first) in zip(answers, cold, strict=True):
            assert report["chosen_segments"] == first["chosen_segments"], way
            agree(answer, reference, HIT_TOLERANCE)


def chooses(report: dict[str, Any]) -> bool:
    """Whether a request had more documents than were left of it."""
    return len(report["chosen_segments"]) < int(report["segments"])


def test_other_policies_neither(server: Server, full: bool) -> None:
    requests = make_requests(random.Random("others"), 60 if full else 8, most=5, longest=700, limit=2500)
    cold = []
    for request in requests:
        server.flush()
        cold.append(ask_segmented(server, request, ANSWER))
    for at_once in (1, 16):
        for (answer, _), (reference, _) in zip(
            ask_all_segmented(server, requests, ANSWER, at_once=at_once), cold, strict=True
        ):
            agree(answer, reference, HIT_TOLERANCE)
    check_no_leak(server)
