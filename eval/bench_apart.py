# SPDX-License-Identifier: Apache-2.0
"""A prefill server and a decode server: SGLang --redknot beside stock SGLang, both over Mooncake.

    python -m eval.bench_apart --json out/apart.json                                             # CPU, embedded model
    python -m eval.bench_apart --shape qwen3-8b --lengths 8192,32768 --json out/apart.json       # two GPUs, the second one decodes

The pairs are measured one after the other and get the same requests, one at a time, which go to both servers of a pair as a router sends
them. On GPUs all four servers start together, which saves minutes, and the pair that is not measured is stopped (SIGSTOP) or ended.
Measured of each length: the time to first token of a new prompt, that of a prompt whose KV the prefill server has cached, and the
seconds of a decode step. With a new prompt the time is of computing it and of its KV's way; with a cached one of the way above all.

Bytes on the wire are counted by the server with RedKnot, which says also what stock SGLang sends: every token's KV of all heads. Stock
does not count them. KV goes over TCP, or with `--ib-device` over that network device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from eval.gpu.ask import NotMeasured, noise
from eval.mooncake import environment
from eval.provenance import origin
from eval.servers import REDKNOT, STOCK, TIMEOUT, Served, add_arguments, flush, start, stopped
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server, reserved_port
from redknot_sglang.measure.table import format_table

SIDES = (STOCK, REDKNOT)
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Asked:
    """Seconds until the first and until the last token of an answer, and how many of the prompt the prefill server had cached."""

    first_s: float
    last_s: float
    cached: int


@dataclass(frozen=True)
class Pair:
    """Two servers that answer together.

    port: where the prefill server tells decode servers of itself.
    """

    prefill: Server
    decode: Server
    port: int
    _rooms: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def ask(self, prompt: Sequence[int], answer: int) -> Asked:
        """An answer of `answer` tokens, which the decode server sends one by one.

        Raises requests.HTTPError, NotMeasured if the answer is shorter.
        """
        sampling = {"temperature": 0, "max_new_tokens": answer, "ignore_eos": True}
        meeting = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.port, "bootstrap_room": next(self._rooms)}
        body = {"input_ids": list(prompt), "sampling_params": sampling, **meeting}
        # 128K numbers take tens of milliseconds to write down, which are not the server's.
        data, streamed = (json.dumps(one).encode() for one in (body, body | {"stream": True}))

        def send(server: Server, content: bytes, stream: bool) -> requests.Response:
            header = {"Content-Type": "application/json"}
            return requests.post(server.url + "/generate", data=content, headers=header, timeout=TIMEOUT, stream=stream)

        with ThreadPoolExecutor(1) as pool:
            begin = time.perf_counter()
            other = pool.submit(send, self.prefill, data, False)
            answered = send(self.decode, streamed, True)
            times, last = list[float](), b""
            if answered.ok:
                # None is for what comes as soon as it comes; the stubs do not know it.
                for line in answered.iter_lines(chunk_size=None):  # type: ignore[call-overload]
                    if line.startswith(b"data: {"):
                        times.append(time.perf_counter() - begin)
                        last = line
            prefilled = other.result()
        for response in (prefilled, answered):
            response.raise_for_status()
        found = json.loads(last.removeprefix(b"data: "))["meta_info"]["completion_tokens"] if last else 0
        if found != answer:
            raise NotMeasured(f"an answer has {found} tokens, not {answer}")
        return Asked(times[0], times[-1], int(prefilled.json()["meta_info"]["cached_tokens"]))

    def sent_bytes(self) -> dict[str, int] | None:
        """What the prefill server has sent so far, and what stock would have; None of stock, which does not say."""
        status = requests.get(self.prefill.url + "/redknot/status", timeout=TIMEOUT)
        if status.status_code == 404:
            return None
        status.raise_for_status()
        found = status.json()["transfer"]
        return {"sent": sum(found["sent_bytes"].values()), "stock": found["stock_bytes"]}


def measure(pair: Pair, vocabulary: int, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one pair and length. Raises requests.HTTPError, OSError, NotMeasured if a prompt was not cached, or was."""

    def prompt(*name: object) -> list[int]:
        return noise(vocabulary, length, "apart", length, *name)

    # Kernels are compiled for a shape when it first comes.
    pair.ask(prompt("warm-up"), 2)
    before = pair.sent_bytes()
    cold, cached, steps = list[float](), list[float](), list[float]()
    for number in range(args.requests):
        flush(pair.prefill.url)
        new = pair.ask(prompt(number), 1)
        if new.cached:
            raise NotMeasured(f"{new.cached} tokens of a new prompt came from a flushed cache")
        cold.append(new.first_s)
        # The next turn of a conversation: what was asked, and new text behind it.
        turn = pair.ask([*prompt(number), *noise(vocabulary, args.tail_tokens, "tail", number)], 1 + args.decode_steps)
        if turn.cached < 0.98 * length:
            raise NotMeasured(f"only {turn.cached} of {length} tokens were cached on the prefill server")
        cached.append(turn.first_s)
        steps.append((turn.last_s - turn.first_s) / args.decode_steps)
    after = pair.sent_bytes()
    result: dict[str, Any] = {"cold_s": cold, "cached_s": cached, "step_s": steps}
    if before is not None and after is not None:
        # Two answers for each number.
        result["bytes"] = {name: (after[name] - before[name]) / (2 * args.requests) for name in after}
    return result


def commands(served: Served, side: str, longest: int, port: int, args: argparse.Namespace) -> dict[str, list[str]]:
    """All flags of the prefill and of the decode server of a side. longest: tokens of the longest prompt."""
    room = longest + args.tail_tokens + args.decode_steps + 64
    common = [
        *served.flags(),
        *served.side_flags()[side],
        *served.context_flags(room),
        *([f"--mem-fraction-static={args.mem_fraction}", "--cuda-graph-max-bs-decode=4"] if served.shape else []),
        # What bounds the memory of servers that share a GPU: a fraction would count what the others have taken as missing.
        f"--max-total-tokens={3 * room}",
        f"--chunked-prefill-size={args.chunk}",
        "--max-running-requests=4",
        "--disaggregation-transfer-backend=mooncake",
        *([f"--disaggregation-ib-device={args.ib_device}"] if args.ib_device else []),
        *(["--redknot-mode=exact"] if side == REDKNOT else args.stock_flags.split()),
    ]
    second = ["--base-gpu-id=1"] if served.shape else []
    return {
        PREFILL: [*common, "--disaggregation-mode=prefill", f"--disaggregation-bootstrap-port={port}"],
        DECODE: [*common, "--disaggregation-mode=decode", *second],
    }


@contextmanager
def launched(
    served: Served, sides: Sequence[str], longest: int, args: argparse.Namespace
) -> Iterator[dict[str, Pair | ServerError]]:
    """Pairs started at the same time, by side, or why one did not come up."""
    with ExitStack() as stack:
        ports = {side: stack.enter_context(reserved_port()) for side in sides}
        flags: dict[str, Sequence[str]] = {
            f"{side}-{role}": words
            for side, port in ports.items()
            for role, words in commands(served, side, longest, port, args).items()
        }
        mooncake = environment()
        if args.ib_device:
            del mooncake["MC_FORCE_TCP"]
        started = start(stack, flags, served.environment() | mooncake, args.json.parent / "apart")
        pairs: dict[str, Pair | ServerError] = {}
        for side, port in ports.items():
            prefill, decode = (started[f"{side}-{role}"] for role in (PREFILL, DECODE))
            if isinstance(prefill, ServerError):
                pairs[side] = prefill
            elif isinstance(decode, ServerError):
                pairs[side] = decode
            else:
                pairs[side] = Pair(prefill, decode, port)
        yield pairs


def others_of(pairs: Mapping[str, Pair | ServerError], side: str) -> list[Server]:
    """The servers of all other sides that are up."""
    up = [pair for name, pair in pairs.items() if name != side and isinstance(pair, Pair)]
    return [server for pair in up for server in (pair.prefill, pair.decode)]


def main() -> None:
    """Measure one pair after the other, print, write after each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, threads=1)
    parser.add_argument("--lengths", default="2048", help="tokens of the prompts (%(default)s)")
    parser.add_argument("--tail-tokens", type=int, default=64, help="new text behind a cached prompt (%(default)s)")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk (%(default)s)")
    parser.add_argument("--requests", type=int, default=5, help="of each kind (%(default)s)")
    parser.add_argument("--decode-steps", type=int, default=64, help="that are timed (%(default)s)")
    parser.add_argument(
        "--mem-fraction", type=float, default=0.8, help="of each GPU, for all of its servers (%(default)s)"
    )
    parser.add_argument("--ib-device", default="", help="network device of both servers, for RDMA")
    parser.add_argument("--stock-flags", default="", help="further flags of stock SGLang, in one word")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    served, lengths = Served.of(args), [int(length) for length in args.lengths.split(",")]
    sides: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
    result: dict[str, Any] = {**origin(args), "sides": sides}
    # A CPU has no cores for four servers.
    for together in [SIDES] if served.shape else [(side,) for side in SIDES]:
        with launched(served, together, max(lengths), args) as pairs:
            for side, pair in pairs.items():
                found = sides[side]
                try:
                    if isinstance(pair, ServerError):
                        raise pair
                    with stopped(others_of(pairs, side)):
                        for length in lengths:
                            found[str(length)] = measure(pair, served.config["vocab_size"], length, args)
                            args.json.write_text(json.dumps(result, indent=1))
                except (ServerError, NotMeasured, requests.RequestException, OSError) as error:
                    found["error"] = str(error)
                    print(f"{side}: {error}", flush=True)
                args.json.write_text(json.dumps(result, indent=1))
    print(table(sides))


def table(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each length and side that was measured; ratios are stock's over ours."""
    lines = []
    for side, found in sides.items():
        for length, figures in found.items():
            if length == "error":
                continue
            stock = sides[STOCK].get(length)
            line = [length, side]
            for name in ("cold_s", "cached_s", "step_s"):
                median = statistics.median(figures[name])
                ratio = f" ({statistics.median(stock[name]) / median:.2f}x)" if stock and side != STOCK else ""
                line.append(f"{1000 * median:.1f}{ratio}")
            sent = figures.get("bytes")
            line.append(f"{100 * sent['sent'] / sent['stock']:.1f} %" if sent else "")
            lines.append(line)
    return format_table(["tokens", "side", "cold ms", "cached ms", "decode step ms", "bytes of stock's"], lines)


if __name__ == "__main__":
    main()
