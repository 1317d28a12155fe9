# SPDX-License-Identifier: Apache-2.0
"""A Mooncake master of one's own, over TCP on this host, and what it counts."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import requests

from redknot_sglang.errors import CliError

_WHAT_TO_DO = (
    "on Debian or Ubuntu run `bash .ci/native .venv`, as `make install` does, or as root `apt-get install libibverbs1 libnuma1 "
    "libnl-3-200 libnl-route-3-200`"
)
# Of the master's metrics those that say what lies in the store.
_COUNTED = {"objects": "master_key_count", "bytes": "master_allocated_bytes"}


def environment() -> dict[str, str]:
    """What processes need in order to load Mooncake's libraries and to use TCP."""
    folders = sorted(Path(sys.prefix, "native").glob("**/*-linux-gnu"))
    paths = [*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")]
    return {"MC_FORCE_TCP": "1", "LD_LIBRARY_PATH": ":".join(path for path in paths if path)}


def program() -> Path:
    """The master's program. Raises CliError, with what to do, if Mooncake Store cannot be loaded here."""
    found = find_spec("mooncake")
    if found is None or not found.submodule_search_locations:
        raise CliError(
            "Mooncake is not installed; run `make install`, or on a GPU machine install the package for its CUDA"
        )
    tried = subprocess.run(
        [sys.executable, "-c", "import mooncake.store"],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        raise CliError(f"Mooncake Store cannot be loaded ({said}); {_WHAT_TO_DO}")
    master = Path(found.submodule_search_locations[0]) / "mooncake_master"
    if not os.access(master, os.X_OK):
        raise CliError(f"{master.name} cannot be run, as where a wheel was only unpacked; run `chmod +x {master}`")
    return master


class Master:
    """A master on a port of its own, with what it says in a file. It runs from `start` to `kill`.

    folder: where the file goes. Raises CliError as `program`.
    """

    def __init__(self, folder: Path) -> None:
        self._program, self._log = program(), folder / "master.log"
        self.port, self._metrics = _free_port(), _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the same port as before, and wait until it listens. Raises CliError if it does not."""
        # Leases are short, so that objects of a test can be removed at once.
        args = [f"--rpc_port={self.port}", f"--metrics_port={self._metrics}", "--default_kv_lease_ttl=100"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._program), *args], env={**os.environ, **environment()}, stdout=log, stderr=log
            )
        for _ in range(100):
            with socket.socket() as probe:
                listens = probe.connect_ex(("127.0.0.1", self.port)) == 0
            # Whoever listens may be somebody else: a master that finds its port taken ends soon after it has begun.
            time.sleep(0.3)
            if self._process.poll() is not None:
                break
            if listens:
                return
        raise CliError(f"Mooncake's master does not listen: {self._log.read_text()[-2000:]}")

    def settings(self, segment_bytes: int) -> dict[str, str | int]:
        """What servers need for its store, for `--hicache-storage-backend-extra-config`. segment_bytes: what each gives to the store."""
        return {
            "master_server_address": f"127.0.0.1:{self.port}",
            "metadata_server": "P2PHANDSHAKE",
            "protocol": "tcp",
            "local_hostname": "127.0.0.1",
            "global_segment_size": segment_bytes,
        }

    def counts(self) -> dict[str, int]:
        """`objects` and `bytes` in the store. Raises requests.RequestException."""
        answer = requests.get(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10)
        answer.raise_for_status()
        lines = (line.split() for line in answer.text.splitlines() if not line.startswith("#"))
        values = {words[0]: words[1] for words in lines if len(words) == 2}
        return {name: int(float(values[metric])) for name, metric in _COUNTED.items()}

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _free_port() -> int:
    """A port that no client gets for its own end of a connection.

    While the master is gone its clients try to reach it again and again. With a port from that range one of them is given the very port that it
    calls, is connected to itself, and the master that comes back finds its port taken.
    """
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    others = [*range(10_000, first), *range(last + 1, 1 << 16)]
    for port in random.SystemRandom().sample(others, min(100, len(others))):
        with socket.socket() as holder, suppress(OSError):
            holder.bind(("127.0.0.1", port))
            return port
    raise CliError("no port is free for Mooncake's master outside of the range that clients get theirs from")
