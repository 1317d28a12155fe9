# SPDX-License-Identifier: Apache-2.0
"""A prefill server and a decode server on this machine's CPU, which exchange KV by Mooncake over TCP."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from eval import mooncake
from redknot_sglang.measure.launch import reserved_port
from tests.serving import harness
from tests.serving.answers import Answer, read_answer
from tests.serving.harness import Server
from tests.serving.segmented import SegmentedRequest

# Requests of exact mode are token ids.
Request = SegmentedRequest | list[int]
HOST = "127.0.0.1"
_LIBRARIES = "libibverbs1 libnuma1 libnl-3-200 libnl-route-3-200"
ENVIRONMENT = {
    **mooncake.environment(),
    # Seconds after which a decode server looks whether a prefill server is still there.
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
}
_ROOMS = itertools.count(1)
needs_host_memory = pytest.mark.skipif(
    not harness.ON_CPU, reason="Mooncake's package without CUDA moves host memory only"
)


def require_mooncake() -> None:
    """Fail, with the sentence that says what to install, where Mooncake cannot be loaded."""
    tried = subprocess.run(
        [sys.executable, "-c", "import mooncake.engine"],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.fail(
            f"Mooncake cannot be loaded ({said}): run `make install` for the package mooncake-transfer-engine-non-cuda, and as root "
            f"`apt-get install {_LIBRARIES}`",
            pytrace=False,
        )


def role(mode: str, port: int) -> list[str]:
    """Flags of a `prefill` or a `decode` server. port: where the prefill server tells decode servers of itself."""
    apart = [f"--disaggregation-mode={mode}", "--disaggregation-transfer-backend=mooncake"]
    return [*apart, f"--disaggregation-bootstrap-port={port}"] if mode == "prefill" else apart


def both(
    prefill: Server, decode: Server, port: int, body: dict[str, Any]
) -> tuple[requests.Response, requests.Response]:
    """Responses of both servers to one request, as a router sends it."""
    meeting = {"bootstrap_host": HOST, "bootstrap_port": port, "bootstrap_room": next(_ROOMS)}
    with ThreadPoolExecutor(1) as pool:
        first: Future[requests.Response] = pool.submit(prefill.post, "/generate", {**body, **meeting})
        answer = decode.post("/generate", {**body, **meeting})
        return first.result(), answer


def body_of(request: Request, length: int) -> dict[str, Any]:
    """The body of a greedy request for `length` tokens with log-probabilities."""
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
    prompt = request
    if isinstance(request, SegmentedRequest):
        prompt, sampling["custom_params"] = request.prompt, request.params
    return {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 2}


@dataclass(frozen=True)
class Pair:
    """Both servers. port: where the prefill server tells decode servers of itself."""

    prefill: Server
    decode: Server
    port: int

    def post(self, request: Request, length: int) -> tuple[requests.Response, requests.Response]:
        """Responses of the prefill server and of the decode server."""
        return both(self.prefill, self.decode, self.port, body_of(request, length))

    def ask(self, request: Request, length: int) -> tuple[Answer, dict[str, Any], dict[str, Any]]:
        """The answer, and the reports of the prefill server and of the decode server. Raises requests.HTTPError."""
        first, second = self.post(request, length)
        for response in (first, second):
            assert response.status_code == 200, response.text
        prompt = request.prompt if isinstance(request, SegmentedRequest) else request
        reports = (response.json()["meta_info"]["redknot"] for response in (first, second))
        return read_answer(prompt, second.json()), *reports

    def ask_all(self, sent: Sequence[Request], length: int, at_once: int) -> list[Answer]:
        """The answers, in order, with `at_once` requests in flight."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda request: self.ask(request, length)[0], sent))


def alone(server: Server, request: Request, length: int) -> Answer:
    """The answer of one server that does both."""
    response = server.post("/generate", body_of(request, length))
    assert response.status_code == 200, response.text
    return read_answer(request.prompt if isinstance(request, SegmentedRequest) else request, response.json())


@contextmanager
def launch_all(
    *args: Sequence[str], patience: int = 20, env: Mapping[str, str] | None = None
) -> Iterator[list[Server]]:
    """Servers with these flags, started at the same time.

    env: further variables of theirs.
    patience: seconds for which they wait for a peer that has not answered, or has no room yet.
    """
    waits = {f"SGLANG_DISAGGREGATION_{what}_TIMEOUT": str(patience) for what in ("BOOTSTRAP", "WAITING")}
    with ExitStack() as stack, ThreadPoolExecutor(len(args)) as pool:
        contexts = [harness.launch(flags, {**ENVIRONMENT, **waits, **(env or {})}) for flags in args]
        for context in contexts:
            stack.push(context)
        started = [pool.submit(context.__enter__) for context in contexts]
        yield [future.result() for future in started]


@contextmanager
def launch_pair(
    *flags: str, decode: Sequence[str] = (), patience: int = 120, env: Mapping[str, str] | None = None
) -> Iterator[Pair]:
    """A prefill server and a decode server with these flags. Fails where Mooncake is missing.

    decode: further flags of the decode server. patience, env: as for `launch_all`.
    """
    require_mooncake()
    with reserved_port() as port:
        args = [*flags, *role("prefill", port)], [*flags, *decode, *role("decode", port)]
        with launch_all(*args, patience=patience, env=env) as (prefill, decode_server):
            yield Pair(prefill, decode_server, port)
