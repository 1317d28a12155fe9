# SPDX-License-Identifier: Apache-2.0
"""Four real servers on this machine's CPUs, behind `redknot route` and behind SGLang's router, under the same traffic.

python -m eval.route.real [--sglang-router PYTHON] [--store] [--topics T,...] [--rate R] [--requests N] [--logs DIR] [--json F]

The servers have the embedded model and small pools, so that documents of 64 tokens do not all fit. First the traffic of
eval/route/drive.py goes through each router. Then one server is killed in the middle of traffic through `redknot route` and started
again. PYTHON is the interpreter of an environment with sglang-router, which SGLang does not bring; without it only our router runs.

With `--store` the servers share a store of files behind host memory of their own, so that a document that one of them computed is loaded by the
others. It is emptied before each router. Without `--store`, on the same options, is what to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import aiohttp

from eval.provenance import origin
from eval.route.drive import Texts, drive, make_texts, send
from eval.route.traffic import Arrival, Traffic, arrivals
from redknot_sglang.errors import CliError
from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS, reserved_port, start, stop

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "eval" / "model"
START_SECONDS = 300.0
# Seconds between the kill of a server and its new start.
AWAY = 10.0


class Killable(Protocol):
    """A server that can be killed and started again. url: its address."""

    url: str

    def kill(self) -> None:
        """End it at once."""

    def start(self) -> None:
        """Start it, without waiting until it answers."""


class Restartable:
    """A server on a port of its own, which can be killed and started again."""

    def __init__(self, flags: Sequence[str], port: int, log: Path, variables: Mapping[str, str]) -> None:
        """variables: added to its environment."""
        self._flags, self._port, self._log, self._variables = flags, port, log, variables
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        """Start it, without waiting until it answers."""
        environment = {**CPU_ENVIRONMENT, "OMP_NUM_THREADS": "1", **self._variables}
        flags = [*self._flags, f"--nccl-port={self._port + 1}"]
        self._process = start(flags, self._log, self._port, environment)

    def kill(self) -> None:
        """End it and its children at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        stop(self._process)


def server_flags(slots: int, document_tokens: int | None = None) -> list[str]:
    """Flags of a server that caches so many tokens. document_tokens: of the documents in a store that it shares, None without one."""
    extra = {"prefetch_threshold": (document_tokens or 0) // 2}
    store = [
        "--enable-hierarchical-cache",
        # As much host memory as the device has: what the store gives passes through it.
        "--hicache-ratio=1",
        "--hicache-storage-backend=file",
        f"--hicache-storage-backend-extra-config={json.dumps(extra)}",
    ]
    return [
        *(store if document_tokens else []),
        f"--model-path={MODEL}",
        *CPU_FLAGS,
        "--redknot",
        f"--redknot-head-map={MODEL / 'head_map.json'}",
        "--redknot-mode=segmented",
        "--redknot-uncertified",
        f"--max-total-tokens={slots}",
        "--max-running-requests=16",
        "--enable-metrics",
        "--random-seed=1",
    ]


def router_command(name: str, python: str, servers: Sequence[str], port: int) -> list[str]:
    """The command of a router. name: a policy of `redknot route`, or `cache_aware`. python: has that router's package."""
    if name == "cache_aware":
        command = [python, "-m", "sglang_router.launch_router", "--policy=cache_aware", "--worker-urls", *servers]
        with reserved_port() as free:
            return [*command, "--host=127.0.0.1", f"--port={port}", f"--prometheus-port={free}"]
    named = [f"--server={server}" for server in servers]
    return [python, "-m", "redknot_sglang.cli.main", "route", *named, f"--policy={name}", f"--port={port}"]


def wait_for(url: str, seconds: float = START_SECONDS) -> None:
    """Wait until an address answers 200. Raises CliError if it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise CliError(f"{url} did not answer within {seconds:.0f} s; see the logs (--logs)")


async def survive(
    router: str, server: Killable, traffic: Traffic, texts: Texts, requests: Sequence[Arrival], away: float = AWAY
) -> dict[str, Any]:
    """Kill a server after a third of the requests, start it `away` seconds later, and count what failed, as JSON.

    router: address of a `redknot route`. server: one of those behind it.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        before = (await _state(session, router, server))["requests"]
        sending = asyncio.ensure_future(send(session, router, traffic, texts, requests))
        await asyncio.sleep(requests[len(requests) // 3].at - requests[0].at)
        while (open_requests := (await _state(session, router, server))["open"]) == 0:
            # One that has nothing to do would lose nothing.
            await asyncio.sleep(0.02)
        server.kill()
        killed, had = time.monotonic(), (await _state(session, router, server))["requests"]
        await asyncio.sleep(away)
        server.start()
        while not (state := await _state(session, router, server))["up"]:
            await asyncio.sleep(0.05)
        back, at_return = time.monotonic(), state["requests"]
        sent = await sending
        after = (await _state(session, router, server))["requests"]
    return {
        "requests": len(sent),
        "open_at_kill": open_requests,
        "failed": sum(one.failed for one in sent),
        "failed_not_in_flight": sum(one.failed and one.at > killed for one in sent),
        "seconds_away": round(back - killed, 1),
        "sent_while_away": sum(killed < one.at < back for one in sent),
        "sent_after_return": sum(one.at > back for one in sent),
        "given_before_kill": had - before,
        "given_after_return": after - at_return,
    }


async def _state(session: aiohttp.ClientSession, router: str, server: Killable) -> dict[str, Any]:
    async with session.get(router + "/redknot/status") as answer:
        return dict((await answer.json())["router"]["servers"][server.url])


@contextmanager
def fleet(args: argparse.Namespace) -> Iterator[tuple[list[Restartable], Path | None]]:
    """`--servers` servers that answer, until the context ends, and the folder that they share, or None. Raises CliError."""
    with ExitStack() as stack:
        args.logs.mkdir(parents=True, exist_ok=True)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="store-", dir=args.logs))).resolve()
        variables = {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(folder)} if args.store else {}
        flags = server_flags(args.slots, args.document_tokens if args.store else None)
        ports = [stack.enter_context(reserved_port()) for _ in range(args.servers)]
        servers = []
        for number, port in enumerate(ports):
            servers.append(Restartable(flags, port, args.logs / f"server-{number}.log", variables))
            stack.callback(servers[-1].stop)
        for server in servers:
            wait_for(server.url + "/health")
        yield servers, folder if args.store else None


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sglang-router", type=Path, metavar="PYTHON", help="interpreter that has sglang-router")
    parser.add_argument("--store", action="store_true", help="servers share a store of files")
    parser.add_argument("--servers", type=int, default=4, help="how many (%(default)s)")
    parser.add_argument("--slots", type=int, default=32768, help="tokens that a server caches (%(default)s)")
    parser.add_argument("--topics", default="8,1", help="numbers of topics; 1: documents are independent (%(default)s)")
    parser.add_argument("--document-tokens", type=int, default=64, help="length of a document (%(default)s)")
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second (%(default)s)")
    parser.add_argument("--requests", type=int, default=320, help="the first quarter is not counted (%(default)s)")
    parser.add_argument("--logs", type=Path, default=Path("out/route"), help="folder for logs (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer, runs = AutoTokenizer.from_pretrained(MODEL), list[dict[str, Any]]()
    pythons = {"documents": sys.executable, **({"cache_aware": str(args.sglang_router)} if args.sglang_router else {})}
    with fleet(args) as (servers, store):
        urls = [server.url for server in servers]
        for topics in map(int, args.topics.split(",")):
            traffic = Traffic(document_tokens=args.document_tokens, text_tokens=12, answer_tokens=4, topics=topics)
            requests, texts = list(arrivals(traffic, args.rate, args.requests, 0)), make_texts(tokenizer, traffic)
            for name, python in pythons.items():
                with ExitStack() as routing:
                    router = _start_router(routing, name, python, urls, args.logs)
                    outcome = asyncio.run(drive(router, urls, traffic, texts, requests, args.requests // 4, store))
                runs.append({"router": name, "traffic": asdict(traffic), **outcome})
                print(json.dumps(runs[-1]), flush=True)
        with ExitStack() as routing:
            router = _start_router(routing, "documents", sys.executable, urls, args.logs, "--check-every=1")
            killed = asyncio.run(survive(router, servers[1], traffic, texts, requests))
            print(json.dumps(killed), flush=True)
    if args.json:
        found = {"origin": origin(args), "runs": runs, "killed": killed}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def _start_router(stack: ExitStack, name: str, python: str, servers: Sequence[str], logs: Path, *flags: str) -> str:
    """Start a router that ends with `stack`; its address."""
    with reserved_port() as free:
        port = free
    with (logs / f"router-{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*router_command(name, python, servers, port), *flags], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    wait_for(f"http://127.0.0.1:{port}/health", 60)
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    main()
