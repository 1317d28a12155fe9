# SPDX-License-Identifier: Apache-2.0
"""Starts an SGLang server as a child process, waits until it answers, and ends it with all its children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redknot_sglang.errors import ServerError

START_TIMEOUT = 300.0
# A server ends in a fraction of a second, but where threads of a transfer library go on it never does.
STOP_TIMEOUT = 3.0

LAUNCH_SERVER = ("-m", "sglang.launch_server")
# What SGLang needs to serve on a CPU without AMX, with or without --redknot.
CPU_FLAGS = (
    "--device=cpu",
    "--attention-backend=torch_native",
    "--sampling-backend=pytorch",
    "--grammar-backend=none",
    "--disable-overlap-schedule",
    "--disable-cuda-graph",
    "--skip-server-warmup",
    "--dtype=float32",
    # An idle scheduler otherwise spins on a core that the client and the other servers need.
    "--sleep-on-idle",
)
CPU_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # Idle OpenMP threads would keep spinning on cores that the server's other processes need.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    url: its address, without /v1.
    process: the child process.
    log: file with its standard output and error.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def log_text(self) -> str:
        """All that the server has printed so far."""
        return self.log.read_text(errors="replace")


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free TCP port of this host, held inside the context by a socket that does not listen, so that nobody else gets it.

    A server can use it all the same, since SGLang binds with SO_REUSEADDR.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def start(
    args: Sequence[str], log: Path, port: int, env: Mapping[str, str], program: Sequence[str] = LAUNCH_SERVER
) -> subprocess.Popen[bytes]:
    """Start `launch_server` as the leader of a session of its own, by which `stop` ends all its children.

    args: all flags but host and port.
    log: file for its output.
    port: where it is to listen.
    env: added to this process's environment.
    program: what Python runs in place of `-m sglang.launch_server`.
    """
    command = [sys.executable, *program, *args, "--host=127.0.0.1", f"--port={port}"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
        )


@contextmanager
def launch(
    args: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = START_TIMEOUT,
    on_wait: Callable[[float], None] = lambda seconds: None,
    program: Sequence[str] = LAUNCH_SERVER,
) -> Iterator[Server]:
    """Run `python -m sglang.launch_server ARGS` on a free port of this host until the context ends.

    args: all flags but host and port.
    log: file for its output.
    env: added to this process's environment, or None.
    timeout: seconds until it must answer.
    on_wait: called about twice a second with the seconds waited so far.
    program: what Python runs in place of `-m sglang.launch_server`.
    Raises ServerError, with the last lines of the log, if it ends before it answers or takes longer.
    """
    with reserved_port() as port:
        process = start(args, log, port, env or {}, program)
        try:
            server = Server(f"http://127.0.0.1:{port}", process, log)
            _wait_until_healthy(server, timeout, on_wait)
            yield server
        finally:
            stop(process)


def _wait_until_healthy(server: Server, timeout: float, on_wait: Callable[[float], None]) -> None:
    begin = time.monotonic()
    while (waited := time.monotonic() - begin) < timeout:
        if (code := server.process.poll()) is not None:
            raise ServerError(f"the server ended with exit code {code}; {_tail(server.log)}")
        try:
            with urllib.request.urlopen(server.url + "/health", timeout=30):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            on_wait(waited)
            time.sleep(0.5)
    raise ServerError(f"the server did not answer within {timeout:.0f} s; {_tail(server.log)}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server that `start` started, and every process of its group."""
    # Only the parent is asked: SGLang takes the death of a child for a crash and spends seconds on it.
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _tail(log: Path, lines: int = 25) -> str:
    last = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"the last lines of {log}:", *last]) if last else f"{log} is empty"
