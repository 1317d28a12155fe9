# SPDX-License-Identifier: Apache-2.0
"""How much of a trace's tokens each eviction policy finds in the cache.

python -m eval.bench_retention [TRACE.jsonl ...] [--kinds K,...] [--shares S,...] [--policies P,...] [--seed N] [--requests N] [--json F]
python -m eval.bench_retention --leaves 10000        # how long one eviction takes
python -m eval.bench_retention --lifetimes [...]     # what lifetimes do, in a server's tree with a host tier

Traces are files in the form of Mooncake's (eval/retention/traces.py says what a line is), or made up here where no file is given;
`--write FOLDER` keeps those. A cache holds a share of a trace's distinct tokens and is empty at first. `redknot` is what a
server decides with (redknot_sglang/radix/retention.py) under the cost of Qwen3-8B with one global KV head of eight in each
layer; the others are SGLang's policies. Of a segmented request those tokens count as found that its own path has, and those of
documents behind them that are cached by themselves. Whether the tree of a server agrees with this count is checked by tests/radix/test_retention_tree.py.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

from eval.provenance import origin
from eval.retention.block_tree import POLICIES, distinct_tokens, request_hits
from eval.retention.eviction import eviction_times
from eval.retention.lifetime import with_and_without
from eval.retention.traces import MADE, PLAIN, Request, make, read, write
from redknot_sglang.measure.table import format_table
from redknot_sglang.plan.arithmetic import Arithmetic

SHARES = "0.01,0.03,0.1,0.3"
# Qwen3-8B: 36 layers, 32 query heads of 128, one KV head of eight global, window 256, sink 4.
_COST = Arithmetic(row=13_890_000_000, pair=512, wide=144, near=1008, probe=4, window=256, sink=4).cost


def _run(name: str, requests: list[Request], shares: list[float], policies: list[str]) -> list[dict[str, object]]:
    distinct = distinct_tokens(requests)
    found: list[dict[str, object]] = []
    for share in shares:
        capacity = max(1, int(distinct * share))
        rates: dict[str, float] = {}
        for policy in policies:
            hits, total = request_hits(requests, capacity, POLICIES[policy](capacity, _COST))
            rates[policy] = round(100 * hits / total, 2)
        found.append(
            {"trace": name, "requests": len(requests), "share": share, "capacity": capacity, "hit_rate": rates}
        )
        print(f"{name} {share}: {rates}", flush=True)
    return found


def _lifetimes(traces: dict[str, list[Request]], shares: list[float]) -> list[dict[str, object]]:
    found = []
    for name, requests in traces.items():
        for share in shares:
            row = with_and_without(requests, share)
            found.append({"trace": name, "requests": len(requests), "share": share, **row})
            print(f"{name} {share}: {row}", flush=True)
    return found


def _table(rows: list[dict[str, object]], policies: list[str]) -> str:
    lines = []
    for row in rows:
        rates = row["hit_rate"]
        assert isinstance(rates, dict)
        lines.append([str(row["trace"]), str(row["share"]), *(f"{rates[policy]:.2f}" for policy in policies)])
    return format_table(["trace", "share", *policies], lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, help="files (default: made-up traces)")
    parser.add_argument(
        "--kinds", help=f"kinds of made-up traces ({','.join(MADE)}; lifetimes: those without segmented requests)"
    )
    parser.add_argument(
        "--shares", default=SHARES, help="sizes of the cache, in distinct tokens of the trace (%(default)s)"
    )
    parser.add_argument("--policies", default=",".join(POLICIES), help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of made-up traces (%(default)s)")
    parser.add_argument("--requests", type=int, default=8000, help="of each made-up trace (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the made-up traces there")
    parser.add_argument(
        "--lifetimes", action="store_true", help="measure lifetimes instead, see eval/retention/lifetime.py"
    )
    parser.add_argument("--leaves", type=int, help="time single evictions from a tree with so many leaves instead")
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()
    if args.leaves is not None:
        times = eviction_times(args.leaves)
        result = {"leaves": args.leaves, "milliseconds": times}
        rows = [[policy, f"{median(found):.3f}", f"{max(found):.3f}"] for policy, found in times.items()]
        print(format_table([f"an eviction from {args.leaves} leaves, ms", "median", "worst"], rows))
    else:
        policies, shares = args.policies.split(","), [float(share) for share in args.shares.split(",")]
        traces = {path.name: read(path) for path in args.traces}
        if not traces:
            kinds = args.kinds.split(",") if args.kinds else PLAIN if args.lifetimes else MADE
            traces = {kind: make(kind, args.seed, args.requests) for kind in kinds}
        found = []
        begin = time.monotonic()
        for name, requests in traces.items():
            if args.write is not None:
                args.write.mkdir(parents=True, exist_ok=True)
                write(args.write / f"{name}.jsonl", requests)
            if not args.lifetimes:
                found += _run(name, requests, shares, policies)
        if args.lifetimes:
            found = _lifetimes(traces, shares)
        else:
            print(_table(found, policies))
        result = {"seconds": round(time.monotonic() - begin), "rows": found}
    if args.json is not None:
        args.json.write_text(json.dumps({**origin(args), **result}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
