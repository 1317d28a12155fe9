# SPDX-License-Identifier: Apache-2.0
"""The four servers: their flags, how they run, and how many documents each has room for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import requests

from eval.rag.noise import NoiseCorpus
from eval.rag.traffic import Shape
from eval.servers import REDKNOT, STOCK, TIMEOUT, Served, alone, start
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import Server
from redknot_sglang.plan.policies import parse_repair

REDKNOT_TIER, STOCK_TIER = "redknot-tier", "stock-tier"
# RedKnot first: the size of its pool is that of the corpus.
SIDES = (REDKNOT_TIER, REDKNOT, STOCK_TIER, STOCK)
TIERS = (REDKNOT_TIER, STOCK_TIER)
_RUNNING = 16
# Beside the question: what SGLang wants to be free of a context.
_SPARE = 8


def prompt_tokens(args: argparse.Namespace, vocabulary: int) -> int:
    """Tokens of a request at most, its answer and a few to spare included."""
    corpus = NoiseCorpus(vocabulary, 1, args.document_tokens, args.seed)
    return Shape(turns=1, documents=args.per_request).longest_prompt(corpus, 1) + 1 + _SPARE


def commands(served: Served, args: argparse.Namespace) -> dict[str, list[str]]:
    """All flags of each server of `--sides`. Raises CliError for a side that is not there, or not on this machine."""
    sides = args.sides.split(",") if args.sides else [s for s in SIDES if served.shape or s != STOCK_TIER]
    unknown = [side for side in sides if side not in SIDES]
    if unknown:
        raise CliError(f"--sides {unknown[0]!r} is not known; there are {', '.join(SIDES)}")
    if STOCK_TIER in sides and not served.shape:
        raise CliError(
            f"--sides {STOCK_TIER} needs a GPU: stock SGLang pins host memory; leave it out, or give --shape"
        )
    context = prompt_tokens(args, served.config["vocab_size"])
    common = [
        *served.flags(),
        *served.context_flags(context),
        *([f"--mem-fraction-static={args.mem_fraction}"] if served.shape else []),
        f"--chunked-prefill-size={args.chunk}",
        f"--max-running-requests={_RUNNING}",
        *([f"--cuda-graph-max-bs-decode={_RUNNING}"] if served.shape else []),
        "--enable-cache-report",
    ]
    budget = int(args.kv_gib * 2**30)
    redknot = [
        f"--redknot-kv-budget={budget}",
        f"--redknot-context-length={context}",
        f"--redknot-segment-length={args.document_tokens}",
        f"--redknot-repair={args.policy}",
    ]
    own = {STOCK: [f"--max-total-tokens={budget // served.token_bytes}", *args.stock_flags.split()], REDKNOT: redknot}
    tier = ["--enable-hierarchical-cache", f"--hicache-ratio={args.host_ratio}"]
    made = {}
    for side in sorted(sides, key=SIDES.index):
        kind = STOCK if side in (STOCK, STOCK_TIER) else REDKNOT
        made[side] = [*common, *served.side_flags()[kind], *own[kind], *(tier if side in TIERS else [])]
    return made


def running(
    made: Mapping[str, Sequence[str]], served: Served, args: argparse.Namespace
) -> Generator[tuple[str, Server | ServerError], None, None]:
    """Each side with its server, or why it did not start; `--together` of them run at a time, and one of these is awake."""
    sides = list(made)
    for at in range(0, len(sides), args.together):
        group = sides[at : at + args.together]
        with ExitStack() as stack:
            print(f"starting {', '.join(group)}", file=sys.stderr, flush=True)
            logs = args.json.parent / "tier_rag"
            started = start(stack, {side: made[side] for side in group}, served.environment(), logs)
            up = {side: server for side, server in started.items() if isinstance(server, Server)}
            for side in group:
                if side not in up:
                    yield side, started[side]
                    continue
                with alone(up, side) as server:
                    yield side, server


def pool_bytes(classes: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes of both head classes, as `/redknot/status` has them of the device or the host."""
    return sum(found["slots"] * found["bytes_per_slot"] for found in classes.values())


def documents_held(
    classes: Mapping[str, Mapping[str, int]], head_map: Mapping[str, int], length: int, policy: str
) -> int:
    """Documents of `length` tokens that pools of these slots hold with nothing else in them, under a repair policy.

    classes: of `/redknot/status`, of the device or the host. head_map: the map there.
    """
    local = length if parse_repair(policy).keeps_whole else min(length, head_map["sink"] + head_map["window"])
    return min(classes["global"]["slots"] // length, classes["local"]["slots"] // local)


def held(server: Server, side: str, served: Served, args: argparse.Namespace) -> dict[str, int]:
    """Documents and bytes that a server has room for, on the device and on the host. Raises requests.RequestException."""
    if side in (STOCK, STOCK_TIER):
        found = requests.get(server.url + "/server_info", timeout=TIMEOUT)
        found.raise_for_status()
        tokens = int(found.json()["max_total_num_tokens"])
        host = int(tokens * args.host_ratio) if side == STOCK_TIER else 0
        sizes = {"device_bytes": tokens * served.token_bytes, "host_bytes": host * served.token_bytes}
        return {"device": tokens // args.document_tokens, "host": host // args.document_tokens, **sizes}
    status = redknot_status(server)
    classes, host_classes = status["classes"], status["tiers"]["host"]
    length, policy = args.document_tokens, args.policy
    return {
        "device": documents_held(classes, status["head_map"], length, policy),
        "host": documents_held(host_classes, status["head_map"], length, policy) if host_classes else 0,
        "device_bytes": pool_bytes(classes),
        "host_bytes": pool_bytes(host_classes) if host_classes else 0,
    }


def redknot_status(server: Server) -> dict[str, Any]:
    """What `/redknot/status` says. Raises requests.RequestException."""
    status = requests.get(server.url + "/redknot/status", timeout=TIMEOUT)
    status.raise_for_status()
    return dict(status.json())
