# SPDX-License-Identifier: Apache-2.0
"""`redknot route` in front of two real servers: answers as without it, and one server that is killed and comes back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from redknot_sglang.config import DEFAULT_SEPARATOR
from redknot_sglang.measure import launch as launching
from tests.serving import harness
from tests.serving.answers import agree, ask, ask_all
from tests.serving.harness import Server
from tests.serving.prompts import mixed, noise, tokenizer
from tests.serving.segmented import SEGMENTS, ask_all_segmented, ask_segmented, make_requests

pytestmark = pytest.mark.serving

LENGTH = 8


@dataclass
class Restartable:
    """A server on a port of its own, which can be killed and started again."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it again."""
        self.process = _start(self.port, self.log)

    def stop(self) -> None:
        """End it in order."""
        launching.stop(self.process)

    def is_healthy(self) -> bool:
        """Whether it answers."""
        return requests.get(self.url + "/health", timeout=30).ok

    def kill(self) -> None:
        """End it and all its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Pair:
    """A router, and both servers behind it, each as a server that tests can ask."""

    router: Server
    direct: list[Server]
    servers: list[Restartable]

    def status(self, number: int) -> dict[str, Any]:
        """What the router says of a server."""
        found: dict[str, Any] = self.router.get("/redknot/status")["router"]["servers"][self.servers[number].url]
        return found


def _start(port: int, log: Path) -> subprocess.Popen[bytes]:
    program = harness.forker().program() if harness.ON_CPU else launching.LAUNCH_SERVER
    args = harness.flags([*SEGMENTS, f"--nccl-port={port + 1}"])
    return launching.start(args, log, port, harness.ENVIRONMENT, program)


def wait_for(true: Callable[[], object], what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("route")
    with ExitStack() as stack:
        ports = [stack.enter_context(launching.reserved_port()) for _ in range(3)]
        servers = []
        for number, port in enumerate(ports[:2]):
            log = folder / f"server{number}.log"
            server = Restartable(port, log, _start(port, log))
            stack.callback(server.stop)
            servers.append(server)
        # The router's own socket does not share its port with one that is held.
        with launching.reserved_port() as free:
            port = free
        url = f"http://127.0.0.1:{port}"
        named = [f"--server={server.url}" for server in servers]
        command = [
            sys.executable,
            "-m",
            "redknot_sglang.cli.main",
            "route",
            *named,
            f"--port={port}",
            "--check-every=0.5",
        ]
        with (folder / "router.log").open("wb") as log_file:
            process = subprocess.Popen(command, stdout=log_file, stderr=subprocess.STDOUT)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        running = launching.Server(url, process, folder / "router.log")
        direct = [Server(one.url, launching.Server(one.url, one.process, one.log)) for one in servers]
        found = Pair(Server(url, running), direct, servers)
        for server in servers:
            wait_for(server.is_healthy, f"{server.url} starts")
        wait_for(lambda: all(found.status(number)["up"] for number in (0, 1)), "both are up")
        yield found


def test_answers_through_the_router_are_those_of_a_server(pair: Pair) -> None:
    rng = random.Random("route")
    asked = make_requests(rng, 16, most=4, longest=700, limit=3000)
    prompts = [mixed(rng, length) for length in (40, 300, 1200)]
    prompts += [prompts[1] + noise(rng, 50), prompts[2] + noise(rng, 20)]
    through = ask_all_segmented(pair.router, asked, LENGTH, at_once=4)
    exact = ask_all(pair.router, prompts, LENGTH, at_once=3)
    assert all(pair.status(number)["requests"] for number in (0, 1))
    for request, (answer, _) in zip(asked, through, strict=True):
        agree(answer, ask_segmented(pair.direct[0], request, LENGTH)[0])
    for prompt, answer in zip(prompts, exact, strict=True):
        agree(answer, ask(pair.direct[0], prompt, LENGTH))


def test_what_is_preloaded_through_the_router_is_found(pair: Pair) -> None:
    rng = random.Random("preloaded")
    documents = [str(tokenizer().decode(noise(rng, 120))) for _ in range(8)]
    answer = pair.router.post("/redknot/segments", {"segments": documents, "repair": "none"})
    assert answer.status_code == 200, answer.text
    assert all(entry["new"] for entry in answer.json())
    tokens = [entry["tokens"] for entry in answer.json()]
    listed = pair.router.get("/redknot/segments")
    assert {entry["server"] for entry in listed} == {server.url for server in pair.servers}
    for document, length in zip(documents, tokens, strict=True):
        prompt = DEFAULT_SEPARATOR.join(["", document, "what is it?"])
        params = {"redknot_mode": "segmented", "redknot_repair": "none"}
        report = pair.router.generate(prompt, 2, sampling_params={"custom_params": params})["meta_info"]["redknot"]
        assert report["reused_tokens"] >= length
    ids = [entry["id"] for entry in listed]
    freed = requests.delete(pair.router.url + "/redknot/segments", json={"ids": ids}, timeout=60).json()
    assert sorted(entry["id"] for entry in freed) == sorted(ids)


def test_streams_come_in_pieces_and_a_hang_up_reaches_the_server(pair: Pair) -> None:
    body: dict[str, Any] = {
        "model": "default",
        "prompt": "Once upon a time",
        "max_tokens": 2000,
        "stream": True,
        "ignore_eos": True,
    }
    with requests.post(pair.router.url + "/v1/completions", json=body, stream=True, timeout=60) as answer:
        pieces = answer.iter_content(None)
        assert sum(next(pieces).startswith(b"data: ") for _ in range(3)) == 3
        assert sum(pair.status(number)["open"] for number in (0, 1)) == 1
    wait_for(lambda: sum(pair.status(number)["open"] for number in (0, 1)) == 0, "the router lets go", 20)

    def idle() -> bool:
        states = pair.router.get("/redknot/status")["servers"].values()
        return all(state["tree"]["global"]["protected"] == 0 for state in states)

    wait_for(idle, "the server has ended the request", 20)


def test_a_server_that_is_killed_and_comes_back(pair: Pair) -> None:
    rng = random.Random("killed")
    prompts = [mixed(rng, 400) for _ in range(24)]
    expected = ask_all(pair.direct[0], prompts, LENGTH, at_once=4)
    before = pair.status(1)["requests"]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, pair.router, prompt, LENGTH) for prompt in prompts]
        wait_for(lambda: pair.status(1)["open"] > 0, "the second server has requests")
        pair.servers[1].kill()
        # None of these answers is streamed, so none has begun.
        answers = [one.result() for one in asked]
    for answer, reference in zip(answers, expected, strict=True):
        agree(answer, reference)
    state = pair.status(1)
    assert not state["up"] and state["held_tokens"] == 0 and state["requests"] > before
    assert pair.router.get("/redknot/status")["servers"].keys() == {pair.servers[0].url}

    pair.servers[1].start()
    wait_for(lambda: pair.status(1)["up"], "it comes back")
    before = pair.status(1)["requests"]
    again = ask_all(pair.router, [mixed(rng, 300) for _ in range(12)], LENGTH, at_once=6)
    assert len(again) == 12 and pair.status(1)["requests"] > before
