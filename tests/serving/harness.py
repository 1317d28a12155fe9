# SPDX-License-Identifier: Apache-2.0
"""Real servers for tests: the embedded model on this machine's CPU, or on its GPU if it has one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
import requests

from eval import mooncake
from redknot_sglang.cpu import has_cuda_driver
from redknot_sglang.errors import ServerError
from redknot_sglang.measure import launch as launching

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "eval" / "model"
FORKING = ROOT / "tests" / "serving" / "forking.py"
CLIENT = ROOT / "tests" / "serving" / "client.py"
HEAD_MAP = MODEL / "head_map.json"
ALL_GLOBAL = MODEL / "all_global.json"

ON_CPU = not has_cuda_driver()
# One server is one process among those of the test run on two cores.
ENVIRONMENT = {
    **(launching.CPU_ENVIRONMENT if ON_CPU else {}),
    "OMP_NUM_THREADS": "1",
    # The scheduler counts every slot after every step and stops the server if one is lost.
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    # Seconds after which a server looks whether a client that waits is still there; without it, four.
    "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",
}
# Of processes that servers are forked from, since they are read by what is imported: where Mooncake's libraries lie, that nothing is
# fetched from a model hub, and that nothing is compiled. SGLang would compile the embedding's two lines of several ranks, with a C++ compiler, for half a minute.
IMPORTED = {
    "LD_LIBRARY_PATH": mooncake.environment()["LD_LIBRARY_PATH"],
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
# Variables of some servers that SGLang reads when it is imported; such servers are forked from a process of their own.
EARLY = frozenset({"SGLANG_TEST_RETRACT", "SGLANG_TEST_RETRACT_INTERVAL"})
FLAGS = (
    *(launching.CPU_FLAGS if ON_CPU else ("--mem-fraction-static=0.3",)),
    "--max-total-tokens=24576",
    "--max-running-requests=16",
    "--context-length=8192",
    "--chunked-prefill-size=512",
    "--enable-cache-report",
    "--random-seed=1",
)
REQUEST_TIMEOUT = 300
# Seconds; a new environment has to compile thousands of files first.
IMPORT_TIMEOUT = 600


@dataclass(frozen=True)
class Server:
    """A running server. url: without /v1."""

    url: str
    running: launching.Server

    def get(self, path: str) -> Any:
        """JSON of a GET; raises requests.HTTPError for an error status."""
        answer = requests.get(self.url + path, timeout=REQUEST_TIMEOUT)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Mapping[str, Any]) -> requests.Response:
        """The response of a POST, whatever its status."""
        return requests.post(self.url + path, json=body, timeout=REQUEST_TIMEOUT)

    def generate(self, prompt: str | list[int], max_new_tokens: int, **body: Any) -> dict[str, Any]:
        """One greedy answer of the native endpoint; `prompt` is text or token ids.

        body: further fields of the request. The answer goes on to `max_new_tokens` whatever the model says.
        Raises requests.HTTPError.
        """
        sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": True}
        sampling.update(body.pop("sampling_params", {}))
        field = "text" if isinstance(prompt, str) else "input_ids"
        answer = self.post("/generate", {field: prompt, "sampling_params": sampling, **body})
        answer.raise_for_status()
        return dict(answer.json())

    def flush(self) -> None:
        """Empty the prefix cache; the server must be idle."""
        # The answer of the last request may be here before the server is done with it: let it wait for that.
        self.post("/flush_cache?timeout=30", {}).raise_for_status()

    def log_text(self) -> str:
        """All the server has printed so far."""
        return self.running.log_text()


def flags(args: Sequence[str], certified: bool = False, base: Sequence[str] = FLAGS) -> list[str]:
    """Flags of every test server (`base`), then `args`; where one is given twice the later one counts.

    certified: whether what has no certificate is refused; most tests serve maps of their own.
    """
    if "--redknot" in args and not certified:
        args = [*args, "--redknot-uncertified"]
    model = [] if any(arg.startswith("--model-path") for arg in args) else [f"--model-path={MODEL}"]
    return [*model, *base, *args]


class Forker:
    """A process that has all modules and forks servers from itself (forking.py); it and they end with this process.

    env: variables of it and of its servers, beyond those of all forked servers.
    """

    def __init__(self, env: Mapping[str, str] = MappingProxyType({})) -> None:
        self.servers = 0  # that run, as `forked_from` counts
        self._folder = TemporaryDirectory(prefix="redknot-forking-")
        self.socket, log = Path(self._folder.name) / "socket", Path(self._folder.name) / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(FORKING), "--serve", str(self.socket)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT, **IMPORTED, **env},
            )
        end = time.monotonic() + IMPORT_TIMEOUT
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace")
                self.close()
                raise ServerError(f"there is no process to fork servers from; it said: {said}")
            time.sleep(0.1)

    def close(self) -> None:
        """End it and the servers that it forked, as the end of this process does."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self.socket.exists():
            # It imports still, and looks at its input only after that.
            self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def program(self, variables: Iterable[str] = ()) -> tuple[str, ...]:
        """What Python runs in place of `-m sglang.launch_server` for a server that is forked.

        variables: names of those of its environment that the server is to have.
        """
        return "-S", "-E", str(CLIENT), str(self.socket), ",".join(variables)


_Variables = tuple[tuple[str, str], ...]
_forkers: dict[_Variables, Forker] = {}
_choosing = Lock()


def forker(early: _Variables = ()) -> Forker:
    """The process to fork servers from, started by the first call.

    early: variables that have to be there when it imports. One with such stays for the next server with the same, until one with
    others is wanted; the one without stays.
    """
    if early not in _forkers:
        for other in [other for other, unused in _forkers.items() if other and early and not unused.servers]:
            _forkers.pop(other).close()
        _forkers[early] = Forker(dict(early))
    return _forkers[early]


@contextmanager
def forked_from(env: Mapping[str, str]) -> Iterator[Sequence[str]]:
    """What Python runs for a server that is forked, with these variables."""
    with _choosing:
        chosen = forker(tuple(sorted((name, env[name]) for name in EARLY & env.keys())))
        chosen.servers += 1
    try:
        yield chosen.program(env)
    finally:
        with _choosing:
            chosen.servers -= 1


def fork_servers_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Have a module of the project fork the servers that it launches, on a CPU. At full size it starts them as its users do."""
    if ON_CPU and not full:
        monkeypatch.setattr(module, "launch", partial(launching.launch, program=forker().program()))


@contextmanager
def launch(
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    certified: bool = False,
    forked: bool = ON_CPU,
    base: Sequence[str] = FLAGS,
) -> Iterator[Server]:
    """A server with `flags(args, certified, base)`, up and healthy; it and all its processes end with the context.

    env: variables of this server, which SGLang may read when it is imported.
    forked: whether its processes are forked, which is quicker (forking.py), or started as SGLang does.
    Raises redknot_sglang.errors.ServerError with its last log lines if it does not come up.
    """
    # SGLang would look for the rendezvous port of its ranks long before they bind it.
    with TemporaryDirectory(prefix="redknot-server-") as folder, launching.reserved_port() as rendezvous:
        log = Path(folder) / "server.log"
        # Data-parallel ranks meet at a port each, which SGLang finds.
        if not any(arg.startswith("--dp-size") for arg in args):
            args = [f"--nccl-port={rendezvous}", *args]
        with ExitStack() as stack:
            program = stack.enter_context(forked_from(env or {})) if forked else launching.LAUNCH_SERVER
            variables = {**ENVIRONMENT, **(env or {})}
            server = launching.launch(flags(args, certified, base), log, env=variables, program=program)
            running = stack.enter_context(server)
            yield Server(running.url, running)


def refused(
    args: Sequence[str], timeout: float = 180, only: Sequence[str] = FLAGS, forked: bool = ON_CPU
) -> tuple[int, str]:
    """Exit code and output of a server that is expected to stop by itself, and that wants a certificate.

    only: the flags of every test server that it has. forked: as of `launch`. Raises AssertionError if it still runs after
    `timeout` seconds.
    """
    program = forker().program() if forked else launching.LAUNCH_SERVER
    with TemporaryDirectory(prefix="redknot-server-") as folder, launching.reserved_port() as port:
        log = Path(folder) / "server.log"
        process = launching.start(flags(args, certified=True, base=only), log, port, ENVIRONMENT, program)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not stop; its log:\n{log.read_text()}") from None
        finally:
            launching.stop(process)
        return code, log.read_text(errors="replace")


def run_redknot(*args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the `redknot` command in the repository root with its output captured."""
    command = [sys.executable, "-m", "redknot_sglang.cli.main", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
