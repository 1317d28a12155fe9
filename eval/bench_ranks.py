# SPDX-License-Identifier: Apache-2.0
"""Tokens that one and several tensor-parallel ranks hold in the same memory of each GPU.

    python -m eval.bench_ranks --shape qwen3-8b --maps one_of_eight,all_global --kv-gib 16 --json out/ranks.json
    python -m eval.bench_ranks --shape qwen3-8b --ranks 1 --flag=--kv-cache-dtype=fp8_e4m3 --json out/fp8.json

A server of a map is started with each number of ranks and the same bytes of KV on each GPU (`--redknot-kv-budget`); it says how many
tokens its pools hold, and has answered a prompt. Stock SGLang shares out every layer's heads evenly, so N ranks hold N times as many.
With the heads of a class dealt out evenly that is so for a head map as well; in the checkpoint's order the rank with the most global
heads would decide. Times of servers of several ranks: `eval.bench_gpu` with `--stock-flag=--tp-size=2 --redknot-flag=--tp-size=2`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from eval.gpu.ask import generate, noise
from eval.provenance import origin
from eval.servers import REDKNOT, TIMEOUT, Served, add_arguments
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server, launch
from redknot_sglang.measure.table import format_table

# Tokens of the prompt that shows that a server works.
_PROMPT = 4096


def flags_of(served: Served, ranks: int, kv_bytes: int, further: Sequence[str] = ()) -> list[str]:
    """All flags of a server of `ranks` ranks with `kv_bytes` bytes of KV each, `further` ones last."""
    return [
        *served.flags(),
        *served.side_flags()[REDKNOT],
        # Of the GPU; the budget decides how much of it is KV.
        *(["--mem-fraction-static=0.9", "--cuda-graph-max-bs-decode=4"] if served.shape else []),
        f"--redknot-kv-budget={kv_bytes}",
        f"--tp-size={ranks}",
        f"--context-length={2 * _PROMPT}",
        "--max-running-requests=4",
        *further,
    ]


def held(server: Server, vocabulary: int, ranks: int) -> dict[str, Any]:
    """What a server's pools hold, after an answer. Raises requests.HTTPError."""
    generate(server.url, [noise(vocabulary, _PROMPT, "ranks", ranks)], 4)
    status = requests.get(server.url + "/redknot/status", timeout=TIMEOUT)
    status.raise_for_status()
    found = status.json()
    classes = found["classes"]
    return {
        "tokens": classes["global"]["slots"],
        "local_tokens": classes["local"]["slots"],
        # Bytes of a slot are those of all ranks.
        "bytes_per_rank": sum(of["slots"] * of["bytes_per_slot"] for of in classes.values()) / ranks,
        "global_heads": found["ranks"]["global_heads"] if found["ranks"] else None,
    }


def main() -> None:
    """Start one server after the other, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, threads=1, head_map=False)
    parser.add_argument("--maps", default="one_of_eight,all_global", help="head maps beside the shape (%(default)s)")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, a GPU each (%(default)s)")
    parser.add_argument("--kv-gib", type=float, default=16.0, help="KV of each rank (%(default)s)")
    parser.add_argument(
        "--flag", action="append", default=[], help="one more flag of every server, as --x=y; repeatable"
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    kv_bytes = int(args.kv_gib * 2**30)
    maps: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {**origin(args), "maps": maps}
    for name in args.maps.split(","):
        served = replace(Served.of(args), head_map=f"{name}.json")
        found = maps[name] = {}
        for ranks in map(int, args.ranks.split(",")):
            log = args.json.parent / f"ranks-{name}-{ranks}.log"
            try:
                flags = flags_of(served, ranks, kv_bytes, args.flag)
                with launch(flags, log, env=served.environment(), timeout=TIMEOUT) as server:
                    found[str(ranks)] = held(server, served.config["vocab_size"], ranks)
            except (ServerError, requests.RequestException) as error:
                found[str(ranks)] = {"error": str(error)}
                print(f"{name}, {ranks} ranks: {error}", flush=True)
            args.json.write_text(json.dumps(result, indent=1))
    print(table(maps))


def table(maps: dict[str, dict[str, Any]]) -> str:
    """A line for each map and number of ranks that was measured; ratios are to one rank."""
    lines = []
    for name, found in maps.items():
        one = found.get("1", {}).get("tokens")
        for ranks, figures in found.items():
            if "error" not in figures:
                ratio = f"{figures['tokens'] / one:.2f}x" if one else ""
                heads = figures["global_heads"]
                lines.append(
                    [name, ranks, f"{figures['tokens']:,}", ratio, ", ".join(map(str, heads)) if heads else ""]
                )
    return format_table(["map", "ranks", "tokens held", "of one rank's", "global heads of each rank"], lines)


if __name__ == "__main__":
    main()
