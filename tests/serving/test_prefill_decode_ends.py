# SPDX-License-Identifier: Apache-2.0
"""A peer that dies in the middle of requests: the other server frees everything, answers errors and goes on with the next peer.

And a decode server alone, with SGLang's `fake` transfer, which brings no KV: slots and their accounts are all that counts here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import requests

from redknot_sglang.measure.launch import reserved_port, stop
from tests.serving import apart, harness
from tests.serving.answers import agree
from tests.serving.apart import Pair, Request
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.prompts import mixed, noise
from tests.serving.segmented import make_requests

pytestmark = pytest.mark.serving

ANSWER, LONG_ANSWER = 12, 200
TOLERANCE = 1e-4
# For requests of warm-ups, whose KV comes from nowhere and is what the slots held before.
NOWHERE = {"bootstrap_host": "2.2.2.2", "bootstrap_room": 0}
FLAGS = (
    "--redknot",
    f"--redknot-head-map={harness.HEAD_MAP}",
    "--redknot-segment-length=100",
    "--chunked-prefill-size=128",
    "--max-total-tokens=12000",
)


# The local pool holds four requests, the global one less than the longest four of these need in the end.
FEW_SLOTS = ("--max-total-tokens=1300", "--redknot-context-length=520", "--num-reserved-decode-tokens=16")
LENGTHS = (1, 5, 130, 131, 200, 300, 400, 420)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    apart.require_mooncake()
    with reserved_port() as found:
        yield found


def make_sent(rng: random.Random) -> list[Request]:
    """Twenty requests: long ones that are computed in chunks, short ones, segmented ones."""
    sent: list[Request] = [mixed(rng, length) for length in (1500, 100) for _ in range(6)]
    return sent + list(make_requests(rng, 8, most=5, longest=300, limit=900))


def ask_until_dead(pair: Pair, dies: Server, lives: Server, seed: str) -> list[int]:
    """Kill one server in the middle of twenty requests; statuses with which the other one has answered them."""
    rng = random.Random(seed)
    sent = make_sent(rng)

    def ask(server: Server, request: Request, room: int) -> int:
        meeting = {"bootstrap_host": apart.HOST, "bootstrap_port": pair.port, "bootstrap_room": room}
        try:
            return server.post("/generate", {**apart.body_of(request, LONG_ANSWER), **meeting}).status_code
        except requests.ConnectionError:
            return 0

    with ThreadPoolExecutor(2 * len(sent)) as pool:
        answers: list[Future[int]] = []
        for number, request in enumerate(sent):
            room = (1 << 50) + number + (len(sent) if dies is pair.prefill else 0)
            pool.submit(ask, dies, request, room)
            answers.append(pool.submit(ask, lives, request, room))
        # Some are done, some under way, some wait.
        while not any(future.done() for future in answers):
            time.sleep(0.05)
        dies.running.process.kill()
        stop(dies.running.process)
        return [future.result() for future in answers]


@apart.needs_host_memory
def test_a_decode_server_dies(port: int) -> None:
    with apart.launch_all([*FLAGS, *apart.role("prefill", port)]) as (prefill,):
        with apart.launch_all([*FLAGS, *apart.role("decode", port)]) as (decode,):
            statuses = ask_until_dead(Pair(prefill, decode, port), decode, prefill, "decode dies")
        assert 200 in statuses and set(statuses) <= {200, 500} and 500 in statuses, statuses
        check_no_leak(prefill)
        with apart.launch_all([*FLAGS, *apart.role("decode", port)]) as (decode,):
            pair = Pair(prefill, decode, port)
            for answer in pair.ask_all(make_sent(random.Random("after"))[-3:], ANSWER, at_once=3):
                assert len(answer.tokens) == ANSWER
            check_no_leak(prefill)
            check_no_leak(decode)


@apart.needs_host_memory
def test_a_prefill_server_dies(port: int) -> None:
    with apart.launch_all([*FLAGS, *apart.role("decode", port)]) as (decode,):
        with apart.launch_all([*FLAGS, *apart.role("prefill", port)]) as (prefill,):
            statuses = ask_until_dead(Pair(prefill, decode, port), prefill, decode, "prefill dies")
        # What had arrived is answered.
        assert set(statuses) <= {200, 500} and 500 in statuses, statuses
        check_no_leak(decode)
        with apart.launch_all([*FLAGS, *apart.role("prefill", port)]) as (prefill,):
            pair = Pair(prefill, decode, port)
            for answer in pair.ask_all(make_sent(random.Random("after"))[-3:], ANSWER, at_once=3):
                assert len(answer.tokens) == ANSWER
            check_no_leak(prefill)
            check_no_leak(decode)


@apart.needs_host_memory
@pytest.mark.full
def test_retracted_requests_come_back_with_the_kv_that_they_had() -> None:
    with apart.launch_pair(*FLAGS, decode=FEW_SLOTS, patience=300) as pair, harness.launch(FLAGS) as single:
        sent: list[Request] = [mixed(random.Random(f"few {length}"), length) for length in LENGTHS]
        answers = pair.ask_all(sent, LONG_ANSWER, len(sent))
        for answer, request in zip(answers, sent, strict=True):
            agree(answer, apart.alone(single, request, LONG_ANSWER), TOLERANCE)
        assert any(answer.retractions for answer in answers)
        check_no_leak(pair.prefill)
        check_no_leak(pair.decode)


def test_a_decode_server_of_few_slots_takes_turns_retracts_and_loses_none() -> None:
    """Some requests wait, some are retracted and come back.

    An answer may be longer than the local pool, since a window is all that it holds there.
    """
    flags = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--disaggregation-mode=decode"]
    with harness.launch([*flags, *FEW_SLOTS, "--disaggregation-transfer-backend=fake"]) as server:
        local = server.get("/redknot/status")["classes"]["local"]["slots"]
        assert local < 1000
        rng = random.Random("few slots")
        prompts = [noise(rng, length) for length in LENGTHS]
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(lambda prompt: server.generate(prompt, LONG_ANSWER, **NOWHERE), prompts))
        assert all(len(answer["output_ids"]) == LONG_ANSWER for answer in answers)
        assert any(answer["meta_info"]["num_retractions"] for answer in answers)
        assert len(server.generate(noise(rng, 20), local + 200, **NOWHERE)["output_ids"]) == local + 200
        check_no_leak(server)
