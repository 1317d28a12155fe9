# SPDX-License-Identifier: Apache-2.0
"""Requests that end early between two servers: clients abort them, or a peer dies in their middle. The other server frees
everything, answers errors and goes on, with the next peer too.

And a decode server alone, with SGLang's `fake` transfer, which brings no KV: slots and their accounts are all that counts here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

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

SIDES = ("prefill", "decode")
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


# Seconds for which one waits for a peer that says nothing, as one does whose client aborted the request there only.
PATIENCE = 8


@dataclass
class Living:
    """A prefill and a decode server, either of which can be started anew after its end."""

    port: int
    running: dict[str, tuple[ExitStack, Server]]

    def start(self, *sides: str) -> None:
        """Start these, at the same time. They end with `stop`."""
        stack = ExitStack()
        flags = [[*FLAGS, *apart.role(side, self.port)] for side in sides]
        servers = stack.enter_context(apart.launch_all(*flags, patience=PATIENCE))
        self.running |= {side: (stack, server) for side, server in zip(sides, servers, strict=True)}

    def stop(self) -> None:
        """End both; a stack that holds both is closed once, and again without effect."""
        for stack, _ in self.running.values():
            stack.close()

    @property
    def pair(self) -> Pair:
        """Those that run now."""
        return Pair(self.running["prefill"][1], self.running["decode"][1], self.port)

    def check(self) -> None:
        """Both go on: they answer together, and hold nothing of earlier requests."""
        for answer in self.pair.ask_all(make_sent(random.Random("after"))[-3:], ANSWER, at_once=3):
            assert len(answer.tokens) == ANSWER
        check_no_leak(self.pair.prefill)
        check_no_leak(self.pair.decode)


@pytest.fixture(scope="module")
def living() -> Iterator[Living]:
    apart.require_mooncake()
    with reserved_port() as port:
        servers = Living(port, {})
        try:
            servers.start(*SIDES)
            yield servers
        finally:
            servers.stop()


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
@pytest.mark.parametrize("side", SIDES)
def test_requests_are_aborted_on_either_side(living: Living, side: str) -> None:
    """In every state: while they wait, in the middle of a chunked prompt, while KV travels, while they decode."""
    rng = random.Random(f"aborts {side}")
    sent: list[Request] = [mixed(rng, 1500) for _ in range(4)]
    sent += make_requests(rng, 8, most=5, longest=300, limit=900)
    server = living.running[side][1]
    with ThreadPoolExecutor(len(sent)) as pool:
        asked = [pool.submit(living.pair.post, request, LONG_ANSWER) for request in sent]
        while not all(future.done() for future in asked):
            server.post("/abort_request", {"rid": "", "abort_all": True})
            # Without a pause the servers do little else than take aborts.
            time.sleep(0.1)
    ended = [response.status_code for future in asked for response in future.result()]
    assert any(status != 200 for status in ended)
    living.check()


@apart.needs_host_memory
@pytest.mark.parametrize("side", SIDES)
def test_a_server_dies_and_another_takes_its_place(living: Living, side: str) -> None:
    (other,) = {*SIDES} - {side}
    dies, lives = living.running[side][1], living.running[other][1]
    statuses = ask_until_dead(living.pair, dies, lives, f"{side} dies")
    assert set(statuses) <= {200, 500} and 500 in statuses, statuses
    if side == "decode":
        # A prefill server has done its part when KV has arrived; a decode server may have answered none in full yet.
        assert 200 in statuses, statuses
    check_no_leak(lives)
    living.start(side)
    living.check()


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
        assert len(server.generate(noise(rng, 20), local + 20, **NOWHERE)["output_ids"]) == local + 20
        check_no_leak(server)
