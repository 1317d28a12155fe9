# SPDX-License-Identifier: Apache-2.0
"""Prompts that come back from host memory: SGLang --redknot beside stock SGLang, both with the hierarchical cache, and computed anew.

    python -m eval.bench_tiers --json out/tiers.json                                        # CPU, embedded model
    python -m eval.bench_tiers --shape qwen3-8b --lengths 32768,131072 --json out/tiers.json

Each device holds one and a half prompts, each host more than three. Three prompts are asked in turn, each time with new text
behind them: whatever the device still has of one when the next comes goes before its turn comes again, so that all of it is on the
host only. A request that found it elsewhere is an error and not a figure. One token is asked for, so the time of a request is its
time to first token. Both servers get the same requests, one at a time. They run one after the other: two devices' and two hosts' KV
of 131,072 tokens are more than one GPU and its host hold. With `--together` both start at once, and the one that is not asked is stopped.

Stock SGLang pins host memory and needs a GPU for that; on a CPU only RedKnot is measured.

What a load costs those that decode meanwhile: streams of a fixed number of tokens run while prompts are asked that are
on the device, and once more while prompts are asked that are on the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests

from eval.gpu.ask import NotMeasured, Reply, generate, noise
from eval.provenance import origin
from eval.servers import REDKNOT, STOCK, TIMEOUT, Served, add_arguments, alone, start
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server
from redknot_sglang.measure.table import format_table

# A prompt that is loaded may miss what a page or a window costs.
_FOUND = 0.98
# Streams that decode while prompts are loaded, and tokens of context of each.
_STREAMS, _CONTEXT = 4, 64
# Prompts that are asked in turn, and questions about each whose tails are to fit.
_TURNS, _TAILS = 3, 4
EXACT = {"redknot_mode": "exact"}


class Prompts:
    """Prompts of each length, and text behind them that never comes twice."""

    def __init__(self, vocabulary: int, tail: int) -> None:
        """vocabulary: token ids to draw from. tail: tokens behind a prompt."""
        self._vocabulary, self._tail, self._asked = vocabulary, tail, 0

    def next(self, length: int, which: int) -> list[int]:
        """Prompt number `which` of `length` tokens, with a new tail."""
        self._asked += 1
        return noise(self._vocabulary, length, "prompt", length, which) + noise(
            self._vocabulary, self._tail, "tail", self._asked
        )

    def stream(self, number: int) -> list[int]:
        """A short prompt, number `number` of those that decode."""
        return noise(self._vocabulary, _CONTEXT, "stream", number)


def found(reply: Reply) -> dict[str, int]:
    """Tokens that a request found on the device and on the host."""
    details = reply.metas[0].get("cached_tokens_details") or {}
    return {tier: int(details.get(tier) or 0) for tier in ("device", "host")}


def copied(server: Server, side: str) -> dict[str, Any] | None:
    """What the server with RedKnot has loaded so far: bytes of both classes, and seconds. None of stock, which does not say."""
    if side == STOCK:
        return None
    status = requests.get(server.url + "/redknot/status", timeout=TIMEOUT)
    status.raise_for_status()
    tiers = status.json()["tiers"]
    return {"bytes": sum(tiers["copied_bytes"]["loaded_back"].values()), "seconds": tiers["load_seconds"]}


def loads(server: Server, side: str, prompts: Prompts, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Time both prompts cold, then from the host. Raises NotMeasured if a prompt was not where it should be."""

    def ask(which: int) -> Reply:
        reply = generate(server.url, [prompts.next(length, which)], 1, None if side == STOCK else EXACT)
        time.sleep(args.pause)
        return reply

    # Kernels are compiled for a shape when it first comes.
    generate(server.url, [prompts.next(length, _TURNS)], 1, None if side == STOCK else EXACT)
    cold = [ask(which).seconds for which in range(_TURNS)]
    for which in range(_TURNS):
        ask(which)
    before = copied(server, side)
    rows = []
    for number in range(args.requests):
        reply = ask(number % _TURNS)
        where = found(reply)
        if where["host"] < _FOUND * length or where["device"] > length - _FOUND * length:
            raise NotMeasured(f"{side}: of a prompt of {length} tokens {where['host']} were on the host, {where}")
        rows.append({"seconds": reply.seconds, **where})
    after = copied(server, side)
    tokens = sum(row["host"] for row in rows)
    moved = tokens * args.token_bytes if before is None or after is None else after["bytes"] - before["bytes"]
    result = {
        "cold_s": cold,
        "rows": rows,
        "median_s": statistics.median(row["seconds"] for row in rows),
        "bytes": moved / len(rows),
    }
    if before is not None and after is not None:
        result["load_s"] = (after["seconds"] - before["seconds"]) / len(rows)
    return result


def decoding(server: Server, side: str, prompts: Prompts, length: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds that the streams take beside prompts on the device, and beside as many on the host."""
    params = None if side == STOCK else EXACT

    def streams(order: Sequence[int], where: str) -> float:
        """Seconds of the streams beside prompts of these numbers, which are expected in that tier."""
        bodies = [prompts.stream(number) for number in range(_STREAMS)]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(generate, server.url, bodies, args.stream_tokens, params)
            time.sleep(args.pause)
            for which in order:
                if running.done():
                    raise NotMeasured("the streams ended before all prompts were asked: raise --stream-tokens")
                reply = generate(server.url, [prompts.next(length, which)], 1, params)
                if found(reply)[where] < _FOUND * length:
                    raise NotMeasured(
                        f"{side}: beside the streams a prompt was not found on the {where}: {found(reply)}"
                    )
            return running.result().seconds

    generate(server.url, [prompts.next(length, 0)], 1, params)
    time.sleep(args.pause)
    streams([0], "device")
    near, far = [], []
    for _ in range(args.repeats):
        near.append(streams([0] * args.asked, "device"))
        far.append(streams([(1 + number) % _TURNS for number in range(args.asked)], "host"))
        generate(server.url, [prompts.next(length, 0)], 1, params)
        time.sleep(args.pause)
    return {"device_s": statistics.median(near), "host_s": statistics.median(far)}


def commands(served: Served, length: int, args: argparse.Namespace) -> dict[str, list[str]]:
    """All flags of each server. length: tokens of a prompt."""
    context = length + args.tail_tokens + 64
    device = 3 * (length + args.tail_tokens) // 2 + _STREAMS * (_CONTEXT + args.stream_tokens)
    common = [
        *served.flags(),
        *served.context_flags(context),
        *([f"--mem-fraction-static={args.mem_fraction}"] if served.shape else []),
        f"--max-total-tokens={device}",
        f"--chunked-prefill-size={args.chunk}",
        f"--max-running-requests={_STREAMS + 2}",
        *([f"--cuda-graph-max-bs-decode={_STREAMS + 2}"] if served.shape else []),
        "--enable-hierarchical-cache",
        "--hicache-ratio=3",
        "--enable-cache-report",
    ]
    # Each question leaves a tail of its own, so there are to be several for a prompt, on the host as well.
    own = {
        STOCK: args.stock_flags.split(),
        REDKNOT: [f"--redknot-context-length={context // _TAILS}", "--redknot-mode=exact"],
    }
    sides = (STOCK, REDKNOT) if served.shape else (REDKNOT,)
    return {side: [*common, *served.side_flags()[side], *own[side]] for side in sides}


def measure(
    server: Server, side: str, vocabulary: int, length: int, args: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is measured of one server, part by part. Raises what `loads` and `decoding` raise."""
    # Each server gets the same requests, tails included.
    prompts = Prompts(vocabulary, args.tail_tokens)
    yield "loads", loads(server, side, prompts, length, args)
    if args.repeats:
        yield "decoding", decoding(server, side, prompts, length, args)


def servers(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], logs: Path, together: bool
) -> Iterator[tuple[str, Server | ServerError]]:
    """Each side with its server, as long as the caller does not go on, or with why it did not come up.

    commands: flags of each server, by side.
    together: start all before the first is yielded, and stop those that are not (SIGSTOP).
    """
    for wave in [list(commands)] if together else [[side] for side in commands]:
        with ExitStack() as stack:
            started = start(stack, {side: commands[side] for side in wave}, environment, logs)
            up = {side: server for side, server in started.items() if isinstance(server, Server)}
            for side, server in started.items():
                if isinstance(server, ServerError):
                    yield side, server
                else:
                    with alone(up, side):
                        yield side, server


def main() -> None:
    """Measure one server after the other for each length, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, threads=2)
    parser.add_argument("--lengths", default="4096", help="tokens of the prompts (%(default)s)")
    parser.add_argument("--tail-tokens", type=int, default=64, help="new text behind a prompt (%(default)s)")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (%(default)s)")
    parser.add_argument("--requests", type=int, default=10, help="loads that are timed (%(default)s)")
    parser.add_argument("--asked", type=int, default=6, help="prompts asked beside the streams (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of the streams; 0 leaves them out (%(default)s)")
    parser.add_argument("--stream-tokens", type=int, default=256, help="tokens that each stream decodes (%(default)s)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds for copies to the host (%(default)s)")
    parser.add_argument("--mem-fraction", type=float, default=0.8, help="of the GPU, for weights and KV (%(default)s)")
    parser.add_argument("--together", action="store_true", help="start both servers at once")
    parser.add_argument("--stock-flags", default="", help="further flags of stock SGLang, in one word")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    served = Served.of(args)
    args.token_bytes = served.token_bytes
    result: dict[str, Any] = {**origin(args), "lengths": {}}
    for length in map(int, args.lengths.split(",")):
        sides: dict[str, dict[str, Any]] = {}
        result["lengths"][length] = sides
        logs = args.json.parent / f"tiers-{length}"
        for side, server in servers(commands(served, length, args), served.environment(), logs, args.together):
            found = sides[side] = {}
            try:
                if isinstance(server, ServerError):
                    raise server
                for part, figures in measure(server, side, served.config["vocab_size"], length, args):
                    found[part] = figures
            except (ServerError, NotMeasured, requests.RequestException) as error:
                found["error"] = str(error)
                print(f"{side}, {length} tokens: {error}", flush=True)
            args.json.write_text(json.dumps(result, indent=1))
    print(table(result["lengths"]))


def table(lengths: dict[int, dict[str, Any]]) -> str:
    """A line for each length and side whose loads were measured."""
    lines = []
    for length, sides in lengths.items():
        measured = {side: found for side, found in sides.items() if "loads" in found}
        stock = measured[STOCK]["loads"] if STOCK in measured else None
        for side, parts in measured.items():
            found, beside = parts["loads"], parts.get("decoding")
            lines.append([
                str(length), side,
                f"{1000 * statistics.median(found['cold_s']):.1f}",
                f"{1000 * found['median_s']:.1f}",
                f"{found['median_s'] / stock['median_s']:.2f}" if stock else "",
                f"{found['bytes'] / 1e6:.1f}",
                f"{100 * found['bytes'] / stock['bytes']:.1f} %" if stock else "",
                f"{found['bytes'] / found['load_s'] / 1e9:.1f}" if found.get("load_s") else "",
                f"{beside['host_s'] / beside['device_s']:.3f}" if beside else "",
            ])  # fmt: skip
    head = "tokens,side,cold ms,from host ms,of stock,MB,of stock,GB/s,decode beside loads".split(",")
    return format_table(head, lines)


if __name__ == "__main__":
    main()
