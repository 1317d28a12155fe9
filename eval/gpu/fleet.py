# SPDX-License-Identifier: Apache-2.0
"""Which servers a run needs: stock and one for each head map, their KV and their flags."""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from eval.gpu.concurrency import LOG_INTERVAL, NEW_TOKENS, prompts_to_send
from eval.gpu.options import load_plan, steps_of
from eval.servers import STOCK, STOCK_FLAGS, Served, prefill_graphs, start
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.heads.head_map import HeadMap, load_head_map
from redknot_sglang.measure.launch import Server
from redknot_sglang.plan.policies import largest
from redknot_sglang.pool.sizing import class_bytes, local_slots_per_sequence

# Tokens beside the longest prompt: tails and answers.
ROOM = 1024
# Batches of the decode graphs; others take the next larger one.
GRAPH_BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Bytes of a server beside weights and KV: CUDA context, workspaces, activations of a chunk, graphs.
OVERHEAD = 4 * 2**30
# What probes add to a local slot, at most.
_PROBE = 1.05


@dataclass(frozen=True)
class Spec:
    """One server: its side, and all its flags.

    need: bytes of GPU memory that it takes, about.
    kv_tokens: tokens of KV that stock SGLang must have at least; None for RedKnot.
    """

    side: str
    flags: list[str]
    need: int
    kv_tokens: int | None = None


@dataclass(frozen=True)
class Plan:
    """Servers of the latency steps and `load`.

    longest: tokens of the longest prompt.
    base: tokens of KV in stock SGLang that prompts, prefixes and batches need.
    main: tokens of KV that stock and the first map get, so that cached documents and running requests fit as well.
    """

    longest: int
    base: int
    main: int

    @classmethod
    def of(cls, args: argparse.Namespace, head_map: HeadMap) -> Plan:
        """What the chosen steps need; head_map: the first one."""
        steps, load, served = steps_of(args), load_plan(args), Served.of(args)
        lengths = [0]
        if {"cold", "prefix", "serving"} & set(steps):
            lengths += args.lengths
        if "decode" in steps:
            lengths += [length for length, _ in args.decode if length in args.lengths]
        if "segments" in steps:
            lengths += [length for length in args.segment_lengths if length in args.lengths]
        longest = max(lengths)
        base = longest + max(longest // 4, 2 * args.chunk)
        main = base
        if "segments" in steps:
            main = max(main, -(-_segments_need(head_map, served, longest, args.chunk) // served.token_bytes))
        if "load" in steps:
            longest = max(longest, load.prompt_tokens)
            main = max(main, load.documents * load.tokens + 6 * load.prompt_tokens)
        given = args.kv_tokens or main
        return cls(longest, min(base, given), given)


def latency_servers(args: argparse.Namespace, maps: Mapping[str, Path]) -> list[Spec]:
    """Stock, then one server for each map; the first map has stock's bytes of KV, others what the steps need."""
    served, steps = Served.of(args), steps_of(args)
    plan = Plan.of(args, load_head_map(next(iter(maps.values()))))
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
        found.append(_redknot(served, args, common, name, path, own, wanted))
    return found


def waves(specs: Sequence[Spec], memory: int | None, together: int | None) -> list[list[Spec]]:
    """Servers that are up at the same time. memory: bytes that they may take, None for no bound. together: how many.

    Raises CliError for a server that is too large by itself, unless `together` says that they will fit.
    """
    found: list[list[Spec]] = [[]]
    for spec in specs:
        if together is None and memory is not None and spec.need > memory:
            need, has = spec.need / 2**30, memory / 2**30
            raise CliError(
                f"{spec.side} needs about {need:.0f} GiB and may take {has:.0f}; give --kv-tokens or --together 1"
            )
        taken = sum(other.need for other in found[-1])
        is_full = together is None and memory is not None and taken + spec.need > memory
        if found[-1] and (is_full or len(found[-1]) == together):
            found.append([])
        found[-1].append(spec)
    return found


def _segmented(args: argparse.Namespace, plan: Plan) -> list[str]:
    steps = steps_of(args)
    policies = args.policies.split(",") if "segments" in steps else []
    policies += args.load_policy.split(",") if "load" in steps else []
    repair = largest(policies)
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
    specs = [
        _stock(served, args, common, kv_bytes // served.token_bytes),
        _redknot(served, args, common, name, path, own, kv_bytes),
    ]
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


def _segments_need(head_map: HeadMap, served: Served, length: int, chunk: int) -> int:
    """Bytes with which cached segments of one prompt under `blend`, the prompt itself and two chunks fit."""
    cost = class_bytes(head_map, served.config["head_dim"], 2 if served.shape else 4)
    if head_map.all_global:
        return int(2.2 * length) * cost.stock
    # There is half a local slot for every global one then (docs/structures.md, "Sizing").
    return int(2.2 * length * (cost.global_slot + 0.5 * cost.local_slot * _PROBE)) + 2 * chunk * cost.stock


def _model(served: Served, args: argparse.Namespace, context: int) -> list[str]:
    """Flags of every server: model, positions, decode graphs, memory."""
    # A server that is stopped for minutes must not find, when it goes on, that it was stuck.
    flags = [*served.flags(), *served.context_flags(context), "--watchdog-timeout=3600"]
    if not served.shape:
        return flags
    return [*flags, f"--mem-fraction-static={args.mem_fraction}", "--cuda-graph-bs-decode", *map(str, GRAPH_BATCHES)]


def _stock(served: Served, args: argparse.Namespace, common: Sequence[str], kv_tokens: int) -> Spec:
    own = [*(STOCK_FLAGS if served.shape else ()), f"--max-total-tokens={kv_tokens}"]
    flags = [*common, *own, *prefill_graphs(args.stock_prefill_graphs), *args.stock_flag]
    return Spec(STOCK, flags, _weights(served) + kv_tokens * served.token_bytes + OVERHEAD, kv_tokens)


def _redknot(
    served: Served,
    args: argparse.Namespace,
    common: Sequence[str],
    name: str,
    path: Path,
    own: Sequence[str],
    kv_bytes: int,
) -> Spec:
    on = ["--redknot", "--redknot-uncertified", f"--redknot-head-map={path}"]
    flags = [*common, *on, *own, *prefill_graphs(args.redknot_prefill_graphs), *args.redknot_flag]
    return Spec(name, flags, _weights(served) + kv_bytes + OVERHEAD)


def _weights(served: Served) -> int:
    """Bytes of the weights of a shape."""
    config = served.config
    hidden, dim = config["hidden_size"], config["head_dim"]
    attention = 2 * hidden * dim * (config["num_attention_heads"] + config["num_key_value_heads"])
    layer = attention + 3 * hidden * config["intermediate_size"]
    return int(2 * (config["num_hidden_layers"] * layer + 2 * config["vocab_size"] * hidden))


def gpu_memory(hardware: str, share: float) -> int | None:
    """Bytes that servers may take of the GPU that a result file names, as `NVIDIA H200, 143771 MiB`; None on a CPU."""
    match = re.search(r", (\d+) MiB", hardware)
    return int(share * int(match[1]) * 2**20) if match else None


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
