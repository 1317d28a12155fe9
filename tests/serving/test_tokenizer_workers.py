# SPDX-License-Identifier: Apache-2.0
"""`--tokenizer-worker-num 2`: whichever process reads a request, it is answered as by one, and all of them show the same.

The processes are started anew, as their users' are, since forked ones would have the plugin already.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.serving import harness
from tests.serving.answers import agree, ask
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server

# Of each question so many, so that no process is left out: each request has a connection of its own.
TIMES = 12
PROMPT = list(range(400, 700))
SEGMENTED = {"redknot_segments": [20, 220], "redknot_repair": "blend:0.08"}

pytestmark = [pytest.mark.serving, pytest.mark.pinned]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """With its certificate, so that what is not certified is refused."""
    args = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--tokenizer-worker-num=2", "--enable-metrics"]
    # SGLang gives up a worker that has not imported all it needs within ten seconds.
    env = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "120"}
    with harness.launch(args, env, certified=True) as running:
        yield running
        check_no_leak(running)


def readers(server: Server) -> Counter[str]:
    """How many messages each process that reads requests has sent on, by the scheduler's and the detokenizer's log."""
    return Counter(re.findall(r"Registering \w+ ipc_name='(\S+)'", server.log_text()))


def generate(server: Server, params: dict[str, Any] | None = None) -> requests.Response:
    sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True, "custom_params": params}
    return server.post("/generate", {"input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True})


def test_a_hit_is_a_miss_whoever_reads_it(server: Server) -> None:
    cold = ask(server, PROMPT, 4)
    # The system chooses who gets a connection, and one of them may get many in a row.
    for asked in range(20 * TIMES):
        warm = ask(server, PROMPT, 4)
        assert warm.cached == len(PROMPT) - 1
        agree(warm, cold, 1e-4)
        if asked >= TIMES and len(readers(server)) == 2:
            break
    assert len(readers(server)) == 2, "both processes must have been asked"


def test_all_of_them_know_the_fields_of_requests(server: Server) -> None:
    answers = [generate(server, SEGMENTED) for _ in range(TIMES)]
    reports = [answer.json()["meta_info"]["redknot"] for answer in answers]
    assert {(report["mode"], report["policy"], report["certified"]) for report in reports} == {
        ("segmented", "blend:0.08", True)
    }
    assert len({tuple(answer.json()["output_ids"]) for answer in answers}) == 1
    separated = " ".join(["lead", "<|redknot_segment|>", "a document " * 20, "<|redknot_segment|>", "question"])
    sampling = {"custom_params": {"redknot_mode": "segmented", "redknot_repair": "blend:0.08"}}
    marked = [server.generate(separated, 2, sampling_params=sampling)["meta_info"]["redknot"] for _ in range(TIMES)]
    assert {(report["mode"], report["segments"]) for report in marked} == {("segmented", 1)}
    for params, why in (
        ({"redknot_segments": [20, 10]}, "redknot_segments"),
        ({"redknot_repair": "boundary:3", **SEGMENTED, "redknot_repair_": 1}, "redknot_repair_"),
        ({**SEGMENTED, "redknot_repair": "boundary:3"}, "not certified"),
    ):
        refused = [generate(server, params) for _ in range(TIMES)]
        assert {answer.status_code for answer in refused} == {400}, refused[0].text
        assert all(why in answer.text for answer in refused)


def test_all_of_them_have_the_routes_and_the_metrics(server: Server) -> None:
    server.flush()
    segment = list(range(900, 1000))
    assert server.post("/redknot/segments", {"segments": [segment]}).json() == [{"tokens": 100, "new": True}]
    for _ in range(TIMES):
        assert server.post("/redknot/segments", {"segments": [segment]}).json() == [{"tokens": 100, "new": False}]
        status = server.get("/redknot/status")
        assert status["certificate"]["certified"] and status["tree"]["global"]["evictable"] == 100
        assert server.get("/redknot/inspect.json")["ranks"][0]["status"] == status
        shown = requests.get(server.url + "/metrics", timeout=60).text
        (used,) = re.findall(r'^redknot:slots_used{head_class="global"} (\S+)$', shown, re.MULTILINE)
        assert float(used) == 100


def test_after_an_update_that_went_through_one_of_them_none_says_certified(server: Server) -> None:
    """Last: the certificate is gone."""
    answer = server.post("/update_weights_from_disk", {"model_path": str(harness.MODEL)})
    assert answer.status_code == 200 and answer.json()["success"], answer.text
    segmented = [generate(server, SEGMENTED) for _ in range(TIMES)]
    assert {answer.status_code for answer in segmented} == {400} and "not certified" in segmented[0].text
    reports = [generate(server).json()["meta_info"]["redknot"] for _ in range(TIMES)]
    assert {(report["certified"], report["weights"]) for report in reports} == {(False, "updated")}
    assert server.get("/redknot/status")["certificate"]["weights"] == "updated"
