# SPDX-License-Identifier: Apache-2.0
"""Starts the services of a compose file as processes of this machine, in place of containers.

Commands, variables, health checks and the order of starts are the file's. Replaced are what a container has of its own: ports and names of
services, where volumes lie, and where programs of the image are.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from redknot_sglang.measure.launch import stop
from tests.serving import harness, mooncake

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Service:
    """One service of the file.

    command: its program and arguments. health: those of its check.
    environment: its variables.
    after: names of the services that must be healthy first.
    """

    command: tuple[str, ...]
    health: tuple[str, ...]
    environment: Mapping[str, str]
    after: tuple[str, ...]


def read_file(path: Path) -> dict[str, Any]:
    """A compose file as it stands, anchors resolved."""
    # PyYAML comes with SGLang; it has no types of its own.
    yaml: Any = import_module("yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def here(path: Path) -> tuple[dict[str, Service], dict[tuple[str, int], int]]:
    """Services of the file as they can run on this machine, and the ports here of each service's ports."""
    services = read_file(path)["services"]
    ports = {(name, port): _free_port() for name, service in services.items() for port in _ports(service)}

    def replaced(text: str, name: str, service: Mapping[str, Any]) -> str:
        if text in services:
            return HOST
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            text = re.sub(rf"(?<=[= ]){re.escape(target)}(?=/|$)", str((path.parent / source).resolve()), text)
        for (other, port), free in ports.items():
            text = re.sub(rf"\b{re.escape(other)}:{port}\b", f"{HOST}:{free}", text)
            if other == name:
                # Its own, as `--port=80`, `127.0.0.1:80` or `('127.0.0.1', 80)`.
                text = re.sub(
                    rf"(?<=port=){port}$|(?<=127\.0\.0\.1:){port}\b|(?<=127\.0\.0\.1', ){port}\b", str(free), text
                )
        return text.replace("0.0.0.0", HOST)

    found = {}
    for name, service in services.items():
        kind, *check = service["healthcheck"]["test"]
        assert kind == "CMD"
        found[name] = Service(
            tuple(replaced(part, name, service) for part in service["command"]),
            tuple(replaced(part, name, service) for part in check),
            {key: replaced(value, name, service) for key, value in service.get("environment", {}).items()},
            tuple(service.get("depends_on", ())),
        )
    return found, ports


def is_server(command: Sequence[str]) -> bool:
    """Whether a command of the image starts SGLang."""
    return tuple(command[:3]) == ("python", "-m", "sglang.launch_server")


def program(command: Sequence[str], forked: Sequence[str] = ()) -> list[str]:
    """A command of the image with the programs of this checkout. forked: what Python runs for a server, if it is forked."""
    if is_server(command) and forked:
        return [sys.executable, *forked, *command[3:]]
    programs: dict[str, list[str]] = {
        "python": [sys.executable],
        "redknot": [sys.executable, "-m", "redknot_sglang.cli.main"],
    }
    known = programs.get(command[0]) or [str(mooncake.program())]
    assert command[0] in (*programs, "mooncake_master"), f"the image has no {command[0]}"
    return [*known, *command[1:]]


@contextmanager
def up(path: Path, logs: Path, forked: bool, timeout: float = 300) -> Iterator[dict[tuple[str, int], str]]:
    """All services, started in the file's order and healthy, until the context ends.

    logs: folder for what they print. forked: whether servers are forked, as in `harness.launch`. timeout: seconds that all of them together may take.
    Yields the address here of each service and port. Raises AssertionError if one ends or is not healthy in time.
    """
    services, ports = here(path)
    running: dict[str, subprocess.Popen[bytes]] = {}
    healthy: set[str] = set()
    end = time.monotonic() + timeout
    with ExitStack() as stack:
        while healthy != services.keys():
            for name, service in services.items():
                if name not in running and healthy.issuperset(service.after):
                    own: Sequence[str] = ()
                    if forked and is_server(service.command):
                        # How many threads there are stays what it is for all test servers.
                        wanted = {
                            key: value for key, value in _variables(service).items() if key not in harness.ENVIRONMENT
                        }
                        own = stack.enter_context(harness.forked_from(wanted))
                    running[name] = _start(service, logs / f"{name}.log", own)
                    stack.callback(_end, running[name])
            for name in running.keys() - healthy:
                said = (logs / f"{name}.log").read_text(errors="replace")[-3000:]
                assert running[name].poll() is None, f"{name} has ended: {said}"
                assert time.monotonic() < end, f"{name} is not healthy: {said}"
                if _ask(services[name]):
                    healthy.add(name)
            time.sleep(0.5)
        yield {key: f"http://{HOST}:{port}" for key, port in ports.items()}


def _variables(service: Service) -> dict[str, str]:
    # The image has Mooncake's libraries where the system looks for them.
    return {**mooncake.environment(), **service.environment}


def _environment(service: Service) -> dict[str, str]:
    return {**os.environ, **_variables(service)}


def _start(service: Service, log: Path, forked: Sequence[str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            program(service.command, forked),
            cwd=harness.ROOT,
            env=_environment(service),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    stop(process)


def _ask(service: Service) -> bool:
    check = program(service.health)
    return subprocess.run(check, env=_environment(service), capture_output=True, timeout=60).returncode == 0


def _ports(service: Mapping[str, Any]) -> list[int]:
    return [int(str(port).rsplit(":", 1)[-1]) for port in (*service.get("expose", ()), *service.get("ports", ()))]


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        return int(holder.getsockname()[1])
