# SPDX-License-Identifier: Apache-2.0
"""Stock SGLang beside SGLang --redknot, started for a benchmark on the same model with the same flags."""

from __future__ import annotations

import argparse
import json
import os
import signal
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import CPU_ENVIRONMENT, CPU_FLAGS, Server, launch

ROOT = Path(__file__).resolve().parent
TIMEOUT = 500
STOCK, REDKNOT = "stock", "redknot"
DEFAULT_MAP = "one_of_eight.json"
# Servers of a shape on a GPU: nothing of the host that differs between the sides, and no tokenizer.
FLAGS = (
    "--skip-tokenizer-init",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--skip-server-warmup",
    "--cuda-graph-backend-prefill=disabled",
    "--random-seed=1",
)
STOCK_FLAGS = ("--attention-backend=fa3",)


@dataclass(frozen=True)
class Served:
    """What both servers serve.

    shape: a folder of eval/shapes, on a GPU; None for the embedded model on the CPU.
    checkpoint: folder of its weights; None for random ones.
    head_map: file beside the shape.
    threads: OpenMP threads of each server on the CPU.
    """

    shape: str | None
    checkpoint: Path | None
    head_map: str
    threads: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Served:
        """From the options of `add_arguments`."""
        return cls(args.shape, args.checkpoint, getattr(args, "head_map", DEFAULT_MAP), args.threads)

    @property
    def folder(self) -> Path:
        """Where config.json and the head maps lie."""
        return ROOT / "shapes" / self.shape if self.shape else ROOT / "model"

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json. Raises OSError if there is no such shape."""
        return dict(json.loads((self.folder / "config.json").read_text()))

    @property
    def token_bytes(self) -> int:
        """Bytes of KV that stock SGLang keeps for a token."""
        config = self.config
        values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        return int(values) * (2 if self.shape else 4)

    def flags(self) -> list[str]:
        """Flags of either server."""
        if not self.shape:
            return [f"--model-path={self.folder}", *CPU_FLAGS, "--random-seed=1"]
        weights = [] if self.checkpoint else ["--load-format=dummy"]
        return [f"--model-path={self.checkpoint or self.folder}", *weights, *FLAGS, "--mem-fraction-static=0.42"]

    def context_flags(self, context: int) -> list[str]:
        """Flags of either server for requests of `context` tokens, also beyond the positions that the model's config names."""
        flags = [f"--context-length={context}"]
        if context > self.config["max_position_embeddings"]:
            # Benchmarks measure times, which do not mind what the weights have learned; the table of angles must reach so far.
            flags.append(f"--json-model-override-args={json.dumps({'max_position_embeddings': context})}")
        return flags

    def side_flags(self) -> dict[str, list[str]]:
        """Flags of one server only."""
        head_map = self.folder / (self.head_map if self.shape else "head_map.json")
        # Benchmarks measure policies and shapes that nobody certified.
        redknot = [
            "--redknot",
            f"--redknot-head-map={head_map}",
            "--redknot-mode=segmented",
            "--redknot-uncertified",
        ]
        return {STOCK: list(STOCK_FLAGS if self.shape else ()), REDKNOT: redknot}

    def environment(self) -> dict[str, str]:
        """Added to the environment of either server."""
        return {} if self.shape else {**CPU_ENVIRONMENT, "OMP_NUM_THREADS": str(self.threads)}


def add_arguments(parser: argparse._ActionsContainer, threads: int, head_map: bool = True) -> None:
    """Options of `Served`; without `--head-map` where a command has its own."""
    parser.add_argument("--shape", help="folder of eval/shapes, on a GPU; default: the embedded model on the CPU")
    if head_map:
        parser.add_argument("--head-map", default=DEFAULT_MAP, help="file beside the shape (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="weights of eval.make_checkpoint instead of dummies")
    parser.add_argument("--threads", type=int, default=threads, help="of each server, on the CPU (%(default)s)")


def prefill_graphs(sizes: str | None) -> list[str]:
    """Flags of a server with prefill CUDA graphs of these sizes, rows separated by commas, or without for None.

    The graphs are SGLang's breakable ones, to which --redknot adds its own of the same sizes.
    """
    if not sizes:
        return ["--cuda-graph-backend-prefill=disabled"]
    return ["--cuda-graph-backend-prefill=breakable", "--cuda-graph-bs-prefill", *sizes.split(",")]


def start(
    stack: ExitStack, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], logs: Path
) -> dict[str, Server | ServerError]:
    """Servers started at the same time, by name, or why one did not come up; they end with `stack`.

    commands: flags of each, by name.
    logs: path whose name gets `-NAME.log`.
    """

    def one(name: str) -> Server | ServerError:
        log = logs.with_name(f"{logs.name}-{name}.log")
        try:
            return stack.enter_context(launch(commands[name], log, env=environment, timeout=TIMEOUT))
        except ServerError as error:
            return error

    with ThreadPoolExecutor(len(commands)) as pool:
        return dict(zip(commands, pool.map(one, commands), strict=True))


@contextmanager
def pair(
    served: Served, common: Sequence[str], extra: Mapping[str, Sequence[str]], logs: Path
) -> Iterator[dict[str, Server]]:
    """Both servers, started at the same time; they end with the context.

    common: further flags of both.
    extra: further flags by side.
    logs: path whose name gets `-stock.log` and `-redknot.log`.
    Raises ServerError if one does not start.
    """
    sides = {side: [*served.flags(), *common, *own, *extra.get(side, ())] for side, own in served.side_flags().items()}
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for side, started in start(stack, sides, served.environment(), logs).items():
            if isinstance(started, ServerError):
                raise started
            servers[side] = started
        yield servers


@contextmanager
def alone(servers: Mapping[str, Server], side: str) -> Iterator[Server]:
    """One of the servers, with all others stopped (SIGSTOP) until the context ends.

    An idle scheduler spins, and on a GPU the driver shares out the card among processes that are awake: measured beside an
    idle server, the one that is asked is slower.
    """
    with stopped([server for name, server in servers.items() if name != side]):
        yield servers[side]


@contextmanager
def stopped(servers: Iterable[Server]) -> Iterator[None]:
    """These servers are stopped (SIGSTOP) until the context ends."""
    groups = [server.process.pid for server in servers]
    for group in groups:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in groups:
            os.killpg(group, signal.SIGCONT)


def flush(url: str) -> None:
    """Empty a server's prefix cache, so that one part of a workload does not help the next. Raises OSError."""
    # The server may still be tidying up the last request; it waits up to `timeout` seconds for that.
    request = urllib.request.Request(url + "/flush_cache?timeout=30", method="POST")
    with urllib.request.urlopen(request, timeout=60):
        pass
