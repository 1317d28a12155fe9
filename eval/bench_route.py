# SPDX-License-Identifier: Apache-2.0
"""What policies of routers compute anew behind them, on made-up traffic.

python -m eval.bench_route [--skews S,...] [--topics T,...] [--slots N,...] [--loads L,...] [--answer-seconds S] [--requests N]
    [--seeds N] [--json F]

Four servers answer requests with 16 documents of a corpus of 256, in a random order, which come at random times (Poisson). How
often a document is asked for follows Zipf's law; with topics, most documents of a request are of one part of the corpus. What is
compared: `documents` and `round-robin` of `redknot route`, with the router's own code, and `cache_aware` of SGLang's router
(eval/route/cache_aware.py). Servers are simulated (eval/route/cluster.py). For every cell: the share of document tokens that
were computed anew, the busiest server's work over the mean, and seconds to the first token, median and 99 of 100.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from eval.provenance import origin
from eval.route.cache_aware import CacheAware
from eval.route.cluster import Cluster, simulate
from eval.route.traffic import Traffic, arrivals
from redknot_sglang.measure.table import format_table
from redknot_sglang.route.choice import POLICIES, Policy

COMPARED: dict[str, Callable[[], Policy]] = {**POLICIES, "cache_aware": CacheAware}


def cell(cluster: Cluster, traffic: Traffic, load: float, requests: int, seeds: int) -> dict[str, Any]:
    """One kind of traffic under every policy, as JSON: the mean of several seeds, and the worst imbalance of them.

    load: as in `Cluster.rate`. requests: of each run, of which the first quarter is not counted.
    """
    found: dict[str, Any] = {"traffic": asdict(traffic), "cluster": asdict(cluster), "load": load, "policies": {}}
    for name, policy in COMPARED.items():
        rate = cluster.rate(traffic, load)
        runs = [
            simulate(cluster, traffic, arrivals(traffic, rate, requests, seed), policy, requests // 4)
            for seed in range(seeds)
        ]
        found["policies"][name] = {
            "share_anew": round(mean(run.share_anew for run in runs), 4),
            "max_over_mean": round(max(run.imbalance for run in runs), 3),
            "ttft_median": round(mean(run.wait(0.5) for run in runs), 3),
            "ttft_p99": round(mean(run.wait(0.99) for run in runs), 3),
        }
    shares = {name: values["share_anew"] for name, values in found["policies"].items()}
    found["ratio"] = round(shares["documents"] / shares["cache_aware"], 3) if shares["cache_aware"] else None
    return found


def _row(found: dict[str, Any]) -> list[str]:
    traffic, cluster = found["traffic"], found["cluster"]
    row = [str(traffic["skew"]), str(traffic["topics"]), str(cluster["slots"]), str(found["load"])]
    for values in found["policies"].values():
        row.append(f"{100 * values['share_anew']:.1f} % / {values['max_over_mean']:.2f} / {values['ttft_p99']:.1f} s")
    return [*row, f"{found['ratio']:.2f}" if found["ratio"] is not None else "-"]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skews", default="1.0", help="Zipf's exponents (%(default)s)")
    parser.add_argument(
        "--topics", default="1,8,16", help="numbers of topics; 1: documents are independent (%(default)s)"
    )
    parser.add_argument("--slots", default="524288,1048576", help="tokens that a server caches (%(default)s)")
    parser.add_argument("--loads", default="2.0", help="load if nothing were cached (%(default)s)")
    parser.add_argument(
        "--answer-seconds", type=float, default=Cluster.answer_seconds, help="how long answers take (%(default)s)"
    )
    parser.add_argument("--requests", type=int, default=4000, help="of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each cell (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    cells = []
    for skew in map(float, args.skews.split(",")):
        for topics in map(int, args.topics.split(",")):
            for slots in map(int, args.slots.split(",")):
                for load in map(float, args.loads.split(",")):
                    traffic = replace(Traffic(), skew=skew, topics=topics)
                    cluster = Cluster(slots=slots, answer_seconds=args.answer_seconds)
                    cells.append(cell(cluster, traffic, load, args.requests, args.seeds))
                    print(_row(cells[-1]), flush=True)
    head = ["Zipf", "topics", "slots", "load", *(f"{name}: anew / max over mean / p99" for name in COMPARED)]
    print(format_table([*head, "documents / cache_aware"], [_row(one) for one in cells]))
    if args.json:
        args.json.write_text(json.dumps({"origin": origin(args), "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
