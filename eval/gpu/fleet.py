# SPDX-License-Identifier: Apache-2.0
"""Which servers a run needs: stock and one for each head map, their KV and their flags."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from eval.gpu.concurrency import LOG_INTERVAL, NEW_TOKENS, prompts_to_send
from eval.gpu.options import load_plan, steps_of
from eval.servers import STOCK, STOCK_FLAGS, Served, start
from redknot_sglang.cli.launch import Server, ServerError
from redknot_sglang.heads.head_map import HeadMap, load_head_map
from redknot_sglang.pool.sizing import class_bytes, local_slots_per_sequence

# Tokens beside the longest prompt: tails and answers.
ROOM = 1024
# Batches of the decode graphs; others take the next larger one.
GRAPH_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Spec:
    """One server: its side, and all its flags. kv_tokens: what stock must have at least; None for RedKnot."""

    side: str
    flags: list[str]
    kv_tokens: int | None = None


@dataclass(frozen=True)
class Plan:
    """Servers of the latency steps and `load`.

    longest: tokens of the longest prompt. base: tokens of stock's KV that prompts, prefixes and batches need. main: those
    of stock and of the first map, in which cached documents and running requests find room as well.
    """

    longest: int
    base: int
    main: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Plan:
        """What the chosen steps need."""
        steps, load = steps_of(args), load_plan(args)
        lengths = [0]
        if {"cold", "prefix"} & set(steps):
            lengths += args.lengths
        if "decode" in steps:
            lengths += [length for length, _ in args.decode if length in args.lengths]
        if "segments" in steps:
            lengths += [length for length in args.segment_lengths if length in args.lengths]
        longest = max(lengths)
        base = longest + max(longest // 4, 2 * args.chunk)
        main = base
        if "segments" in steps:
            main = max(main, int(1.4 * longest) + 2 * args.chunk)
        if "load" in steps:
            longest = max(longest, load.prompt_tokens)
            main = max(main, load.documents * load.tokens + 6 * load.prompt_tokens)
        given = args.kv_tokens or main
        return cls(longest, min(base, given), given)


def latency_servers(args: argparse.Namespace, maps: Mapping[str, Path]) -> list[Spec]:
    """Stock, then one server for each map; the first map has stock's bytes of KV, others what the steps need."""
    served, plan, steps = Served.of(args), Plan.of(args), steps_of(args)
    common = [*_model(served, args, plan.longest + ROOM), f"--chunked-prefill-size={args.chunk}"]
    common += ["--max-running-requests=64"]
    found = [_stock(served, args, common, plan.main)]
    for number, (name, path) in enumerate(maps.items()):
        wanted = plan.main * served.token_bytes
        if number:
            wanted = min(wanted, kv_need(load_head_map(path), served, plan.base, plan.longest + ROOM, args.chunk))
        own = [f"--redknot-kv-budget={wanted}", f"--redknot-context-length={plan.longest + ROOM}"]
        if not number and {"segments", "load"} & set(steps):
            own += _segmented(args, plan)
        found.append(_redknot(args, common, name, path, own))
    return found


def _segmented(args: argparse.Namespace, plan: Plan) -> list[str]:
    steps = steps_of(args)
    policies = args.policies.split(",") if "segments" in steps else []
    policies += [args.load_policy] if "load" in steps else []
    # The local pool is sized for the policy whose cached segments need most of it.
    repair = next((policy for policy in policies if policy.startswith("blend")), policies[0])
    length = args.load_document_tokens if "load" in steps else plan.longest // args.segments
    return ["--redknot-mode=segmented", f"--redknot-repair={repair}", f"--redknot-segment-length={length}"]


def held_servers(
    args: argparse.Namespace, name: str, path: Path, length: int
) -> tuple[list[Spec], dict[str, int], int]:
    """Stock and the map `name` with the same bytes of KV for requests of one length, how many to send, and the bytes."""
    served = Served.of(args)
    total = length + NEW_TOKENS
    kv_bytes = int((args.kv_gib or (24 if length <= 32768 else 60)) * 2**30)
    head_map = load_head_map(path)
    common = [*_model(served, args, total + ROOM), f"--chunked-prefill-size={args.chunk}"]
    common += ["--max-running-requests=96", f"--decode-log-interval={LOG_INTERVAL}"]
    own = [f"--redknot-kv-budget={kv_bytes}", f"--redknot-context-length={total}"]
    specs = [_stock(served, args, common, kv_bytes // served.token_bytes), _redknot(args, common, name, path, own)]
    cost = class_bytes(head_map, served.config["head_dim"], 2 if served.shape else 4)
    local = min(total, local_slots_per_sequence(head_map))
    each = {STOCK: served.token_bytes * total, name: cost.global_slot * total + cost.local_slot * local}
    return specs, {side: prompts_to_send(kv_bytes, size) for side, size in each.items()}, kv_bytes


def kv_need(head_map: HeadMap, served: Served, tokens: int, context: int, chunk: int) -> int:
    """Bytes with which a map's server holds `tokens` tokens, split as for requests of `context`, and two chunks."""
    cost = class_bytes(head_map, served.config["head_dim"], 2 if served.shape else 4)
    if head_map.all_global:
        return tokens * cost.global_slot
    ratio = min(1.0, local_slots_per_sequence(head_map) / context)
    return int(tokens * (cost.global_slot + ratio * cost.local)) + 2 * chunk * cost.local


def _model(served: Served, args: argparse.Namespace, context: int) -> list[str]:
    """Flags of every server: model, positions, decode graphs, memory."""
    flags = [*served.flags(), f"--context-length={context}"]
    if not served.shape:
        return flags
    if context > served.config["max_position_embeddings"]:
        # Random weights do not mind where their positions end; the table of angles does.
        flags.append(f"--json-model-override-args={json.dumps({'max_position_embeddings': context})}")
    return [*flags, f"--mem-fraction-static={args.mem_fraction}", "--cuda-graph-bs-decode", *map(str, GRAPH_BATCHES)]


def _stock(served: Served, args: argparse.Namespace, common: Sequence[str], kv_tokens: int) -> Spec:
    own = [*(STOCK_FLAGS if served.shape else ()), f"--max-total-tokens={kv_tokens}"]
    return Spec(STOCK, [*common, *own, *_graphs(args.stock_prefill_graphs), *args.stock_flag], kv_tokens)


def _redknot(args: argparse.Namespace, common: Sequence[str], name: str, path: Path, own: Sequence[str]) -> Spec:
    on = ["--redknot", f"--redknot-head-map={path}"]
    return Spec(name, [*common, *on, *own, *_graphs(args.redknot_prefill_graphs), *args.redknot_flag])


def _graphs(sizes: str | None) -> list[str]:
    return ["--cuda-graph-backend-prefill=breakable", "--cuda-graph-bs-prefill", *sizes.split(",")] if sizes else []


@contextmanager
def running(specs: Sequence[Spec], served: Served, logs: Path) -> Iterator[dict[str, Server | ServerError]]:
    """The servers, started at the same time, or why one did not come up; they end with the context.

    logs: path whose name gets `-SIDE.log`. Stock with less KV than asked for is an error: SGLang takes what is free.
    """
    with ExitStack() as stack:
        found = start(stack, {spec.side: spec.flags for spec in specs}, served.environment(), logs)
        for spec in specs:
            server = found[spec.side]
            if isinstance(server, Server) and spec.kv_tokens is not None and (lacks := _lacks(server, spec.kv_tokens)):
                found[spec.side] = ServerError(lacks)
        try:
            yield found
        finally:
            for started in (server for server in found.values() if isinstance(server, Server)):
                # There is nothing to save, and a polite end takes ten seconds for each.
                if started.process.poll() is None:
                    os.killpg(started.process.pid, signal.SIGKILL)


def _lacks(server: Server, tokens: int) -> str:
    told = requests.get(server.url + "/server_info", timeout=60).json()
    has = told["max_total_num_tokens"]
    return "" if has >= tokens else f"stock has {has} tokens of KV, not {tokens}; lower --kv-tokens or --together"
