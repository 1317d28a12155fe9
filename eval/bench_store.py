# SPDX-License-Identifier: Apache-2.0
"""Documents in a Mooncake Store over TCP on this host: objects, bytes, and time to first token when they come back from there.

    python -m eval.bench_store --json out/store.json                                                   # CPU, embedded model
    python -m eval.bench_store --shape qwen3-8b --document-tokens 2048 --json out/store.json

A server of each side with the host tier and an empty store of its own is asked each document. When nothing more is written, Mooncake's
master says how many objects and bytes there are. Then device and host are emptied, and each document is asked with text behind it: its
KV comes from the store. One token is asked for, so the time of a request is its time to first token.

Stock SGLang keeps pages of `--page` tokens, in the layout that it recommends for stores. It pins host memory and needs a GPU for
that; on a CPU only RedKnot is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests

from eval.gpu.ask import NotMeasured, Reply, generate, noise
from eval.mooncake import Master, environment
from eval.provenance import origin
from eval.servers import REDKNOT, STOCK, TIMEOUT, Served, add_arguments, flush
from redknot_sglang.errors import CliError, ServerError
from redknot_sglang.measure.launch import Server, launch
from redknot_sglang.measure.table import format_table

# What a document that comes back may miss: a page, a window.
_FOUND = 0.9
# Seconds without a new object after which nothing more is written, and for which that is awaited.
_STILL, _PATIENCE = 3.0, 120.0


def commands(served: Served, side: str, master: Master, args: argparse.Namespace) -> list[str]:
    """All flags of a side's server."""
    prompt = args.document_tokens + args.tail_tokens
    # Both rounds fit, so that nothing is evicted that has not been written.
    tokens = 2 * (args.documents + 1) * prompt
    settings = {
        **master.settings(2 * tokens * served.token_bytes),
        "prefetch_threshold": 32,
        "prefetch_timeout_base": 30,
    }
    own = {
        STOCK: ["--hicache-mem-layout=page_first", f"--page-size={args.page}", *args.stock_flags.split()],
        REDKNOT: [f"--redknot-context-length={prompt + 64}", "--redknot-mode=exact"],
    }
    return [
        *served.flags(),
        *served.context_flags(prompt + 64),
        *([f"--mem-fraction-static={args.mem_fraction}"] if served.shape else []),
        f"--max-total-tokens={tokens}",
        "--max-running-requests=2",
        "--enable-hierarchical-cache",
        "--hicache-ratio=2",
        "--hicache-storage-backend=mooncake",
        f"--hicache-storage-backend-extra-config={json.dumps(settings)}",
        "--enable-cache-report",
        *served.side_flags()[side],
        *own[side],
    ]


def written(master: Master) -> dict[str, int]:
    """What lies in the store when nothing more comes. Raises NotMeasured if that does not end."""
    begin = still = time.monotonic()
    found = master.counts()
    while time.monotonic() - still < _STILL or not found["objects"]:
        if time.monotonic() - begin > _PATIENCE:
            raise NotMeasured(f"the store did not come to rest in {_PATIENCE:.0f} s: {found}")
        time.sleep(0.2)
        now = master.counts()
        if now != found:
            found, still = now, time.monotonic()
    return found


def measure(server: Server, side: str, master: Master, vocabulary: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one side. Raises requests.RequestException, NotMeasured if a document did not come from the store."""
    params = None if side == STOCK else {"redknot_mode": "exact"}

    def ask(document: int, tail: int = 0) -> Reply:
        prompt = noise(vocabulary, args.document_tokens, "document", document)
        return generate(server.url, [prompt + noise(vocabulary, tail, "tail", document)], 1, params)

    # Kernels are compiled for a shape when it first comes.
    for tail in (0, args.tail_tokens):
        ask(args.documents, tail)
    before = written(master)
    cold = [ask(document).seconds for document in range(args.documents)]
    after = written(master)
    rows = []
    flush(server.url)
    for document in range(args.documents):
        reply = ask(document, args.tail_tokens)
        details = reply.metas[0].get("cached_tokens_details") or {}
        if reply.cached[0] < _FOUND * args.document_tokens or not details.get("storage"):
            raise NotMeasured(f"{side}: of document {document} came {reply.cached[0]} tokens, {details}")
        rows.append({"seconds": reply.seconds, "cached": reply.cached[0], **details})
    each = {name: (after[name] - before[name]) / args.documents for name in after}
    return {"cold_s": cold, "rows": rows, "median_s": statistics.median(row["seconds"] for row in rows), **each}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one side after the other, print, write. Exit code 1 if a side is missing, 2 if none could begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, threads=2)
    parser.add_argument("--documents", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--document-tokens", type=int, default=512, help="(%(default)s)")
    parser.add_argument("--tail-tokens", type=int, default=32, help="new text behind a document (%(default)s)")
    parser.add_argument("--page", type=int, default=64, help="tokens of stock's pages (%(default)s)")
    parser.add_argument("--mem-fraction", type=float, default=0.8, help="of the GPU, for weights and KV (%(default)s)")
    parser.add_argument("--stock-flags", default="", help="further flags of stock SGLang, in one word")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    served = Served.of(args)
    result: dict[str, Any] = {**origin(args), "sides": {}}
    for side in (STOCK, REDKNOT) if served.shape else (REDKNOT,):
        with ExitStack() as stack:
            try:
                master = Master(args.json.parent)
                stack.callback(master.kill)
                master.start()
                flags = commands(served, side, master, args)
                env = {**served.environment(), **environment()}
                log = args.json.parent / f"store-{side}.log"
                server = stack.enter_context(launch(flags, log, env=env, timeout=TIMEOUT))
                result["sides"][side] = measure(server, side, master, served.config["vocab_size"], args)
            except (ServerError, NotMeasured, requests.RequestException) as error:
                result["sides"][side] = {"error": str(error)}
                print(f"{side}: {error}", flush=True)
            except CliError as error:
                print(f"bench_store: {error}", flush=True)
                return 2
        args.json.write_text(json.dumps(result, indent=1))
    print(table(result["sides"]))
    return int(any("error" in found for found in result["sides"].values()))


def table(sides: dict[str, dict[str, Any]]) -> str:
    """A line for each side that was measured; ratios are of stock's figures to the side's."""
    stock = sides.get(STOCK, {})
    lines = []
    for side, found in sides.items():
        if "error" in found:
            continue

        def ratio(name: str, value: float) -> str:
            return f"{stock[name] / value:.1f}x" if name in stock else ""  # noqa: B023

        lines.append(
            [
                side,
                f"{found['objects']:.0f}",
                ratio("objects", found["objects"]),
                f"{found['bytes'] / 1e6:.2f}",
                ratio("bytes", found["bytes"]),
                f"{1000 * statistics.median(found['cold_s']):.1f}",
                f"{1000 * found['median_s']:.1f}",
            ]
        )
    head = "side,objects of a document,fewer,MB of a document,fewer,cold ms,from the store ms".split(",")
    return format_table(head, lines)


if __name__ == "__main__":
    raise SystemExit(main())
