# SPDX-License-Identifier: Apache-2.0
"""Exact match of the embedded model under each method's map, and under random and reversed maps of the same size.

python -m eval.bench_maps map.profile.json [--n 400] [--first 0] [--lengths 1024,2048,4096] [--json F]

Of each method in a `redknot profile` of the embedded model, the map that it would have chosen under the profile's
budget, by calibration loss; for each of these the reverse-ranked map and `--random` random ones with the same window and number
of global heads; all heads global (`dense`); and the map by construction (`shipped`). Maps that are the same are measured once.

Whole answers, teacher forced, which is exact match of greedy decoding (eval/train/evaluate.py); all maps see the same
prompts. The seeds from `--first` on must not be those of calibration, or the run is refused. Intervals are Wilson's, 95 %,
of one map over prompts; that of a mean is over all prompts of a length, every task having the same number. Random maps
differ far more from each other than prompts do: a row `random, all` has their mean, and a normal interval over maps.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.provenance import origin
from eval.tasks import TASKS
from eval.train.checkpoint import load_weights
from eval.train.evaluate import Encoded, answered, encoded_example
from eval.train.model import EmbeddedModel, ModelConfig
from redknot_sglang.heads import HeadMap, load_head_map
from redknot_sglang.measure.statistics import Z_95, wilson_interval
from redknot_sglang.measure.table import format_table
from redknot_sglang.profile.methods.controls import random_harm, reversed_harm
from redknot_sglang.profile.record import load_record
from redknot_sglang.profile.select import ranking, within_budget

MODEL = Path(__file__).parent / "model"
LAYERS, KV_HEADS = ModelConfig.layers, ModelConfig.kv_heads
Maps = dict[str, HeadMap]


def top(harm: list[list[float]], size: int, window: int, sink: int) -> HeadMap:
    """The map whose `size` most harmed heads are global."""
    return HeadMap.from_global_heads(LAYERS, KV_HEADS, ranking(harm)[:size], window, sink)


def maps_of(record: dict[str, Any], randoms: int) -> Maps:
    """The maps to measure, by name. Raises ValueError for a profile of another model or without a budget."""
    shape, target = (record["model"]["num_layers"], record["model"]["num_kv_heads"]), record["target"]
    if shape != (LAYERS, KV_HEADS) or target["kv"] is None:
        raise ValueError("needs a profile of the embedded model with --target-kv")
    shipped = load_head_map(MODEL / "head_map.json")
    maps = {"dense": HeadMap.from_global_heads(*shape, ranking(random_harm(*shape, 0)), 128, 4), "shipped": shipped}
    sizes = []
    for name, found in record["methods"].items():
        mine = [p for p in record["points"] if p["method"] == name]
        taken = within_budget([(p["kv"], p["loss"]) for p in mine], target["kv"])
        if taken is None:
            continue
        best = mine[taken]
        harm, size = found["harm"][str(best["window"])], (best["global"], best["window"], best["sink"])
        maps[name], maps[f"reverse:{name}"] = top(harm, *size), top(reversed_harm(harm), *size)
        sizes.append(size)
    for size in dict.fromkeys(sizes):
        for seed in range(randoms):
            maps[f"random:{seed}, {size[0]} global, window {size[1]}"] = top(random_harm(*shape, seed), *size)
    return maps


def check_seeds(record: dict[str, Any], first: int, count: int, lengths: list[int]) -> None:
    """Raise ValueError if calibration saw one of the prompts."""
    data = record["data"]
    if data["source"] != "tasks" or not set(data["lengths"]) & set(lengths):
        return
    low, high = data["seeds"]
    if first <= high and low < first + count:
        raise ValueError(f"calibration used the seeds {low} to {high}: give --first and --n that leave them out")


def encode(task: str, length: int, seeds: range) -> list[Encoded]:
    """Examples, made by other processes where there are cores for them."""
    one = partial(encoded_example, task, length)
    spare = min(16, (os.cpu_count() or 1) - 2)
    if spare < 1 or len(seeds) < 50:
        return list(map(one, seeds))
    # Spawned, not forked: this process has threads, and a CUDA context.
    with multiprocessing.get_context("spawn").Pool(spare) as pool:
        return pool.map(one, seeds, chunksize=16)


def measure(args: argparse.Namespace, maps: Maps) -> Iterator[dict[str, Any]]:
    """A cell for each task, length and map; `hits` has a digit for each prompt, first seed first."""
    model = EmbeddedModel(ModelConfig()).requires_grad_(False)
    load_weights(model, MODEL / "model.safetensors")
    model.to(args.device)
    dtype = getattr(torch, args.dtype)
    begin = time.monotonic()
    for length in args.lengths:
        for task in args.tasks:
            examples = encode(task, length, range(args.first, args.first + args.n))
            known: dict[str, list[bool]] = {}
            for name, head_map in maps.items():
                # Of a map without local heads the window makes no difference, but is in the fingerprint.
                key = "dense" if head_map.all_global else head_map.fingerprint
                if key not in known:
                    heads = [(layer, head) for layer in range(LAYERS) for head in head_map.global_heads(layer)]
                    model.config = ModelConfig(global_heads=tuple(heads), sink=head_map.sink, window=head_map.window)
                    mode = "dense" if head_map.all_global else "mapped"
                    known[key] = answered(model, examples, length, mode, dtype, args.batch_tokens)
                hits = known[key]
                low, high = wilson_interval(sum(hits), len(hits))
                yield {
                    "map": name, "length": length, "task": task, "right": sum(hits), "n": len(hits),
                    "low": round(low, 4), "high": round(high, 4), "hits": "".join(str(int(hit)) for hit in hits),
                }  # fmt: skip
            print(f"{length} tokens, {task}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def summary(cells: list[dict[str, Any]], maps: Maps, lengths: list[int], tasks: list[str]) -> list[dict[str, Any]]:
    """For each length and map exact match by task, its mean with interval, and points against dense."""
    rows = []
    for length in lengths:
        of_length = []
        for name, head_map in maps.items():
            mine = {c["task"]: c for c in cells if (c["length"], c["map"]) == (length, name)}
            right, n = (sum(mine[task][key] for task in tasks) for key in ("right", "n"))
            of_length.append({
                "length": length, "map": name, "global": sum(map(sum, head_map.is_global)), "window": head_map.window,
                "kv_at_4096": round(head_map.compression(4096), 4), "mean": right / n, "n": n,
                "share": {task: mine[task]["right"] / mine[task]["n"] for task in tasks},
                "interval_95": wilson_interval(right, n),
            })  # fmt: skip
        of_length += pooled_randoms(of_length, tasks)
        dense = of_length[0]["share"]
        for row in of_length:
            losses = [100 * (dense[task] - row["share"][task]) for task in tasks]
            row |= {"mean_loss_points": sum(losses) / len(tasks), "largest_loss_points": max(losses)}
        rows += of_length
    return rows


def pooled_randoms(rows: list[dict[str, Any]], tasks: list[str]) -> list[dict[str, Any]]:
    """Of the random maps of each size one row: means, and the interval of the mean over maps."""
    pooled = []
    randoms = [row for row in rows if row["map"].startswith("random:")]
    for size in dict.fromkeys((row["global"], row["window"]) for row in randoms):
        some = [row for row in randoms if (row["global"], row["window"]) == size]
        means = [row["mean"] for row in some]
        mean = statistics.fmean(means)
        half = Z_95 * statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else math.inf
        pooled.append({
            **some[0], "map": f"random, all {len(some)}, {size[0]} global, window {size[1]}", "mean": mean,
            "share": {task: statistics.fmean(row["share"][task] for row in some) for task in tasks},
            "n": sum(row["n"] for row in some), "interval_95": (max(0.0, mean - half), min(1.0, mean + half)),
        })  # fmt: skip
    return pooled


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """The summary as text."""
    header = ("map", "global", "W", "KV at 4K", *tasks, "mean", "95 %", "points lost", "worst task")
    lines = [
        [
            row["map"], str(row["global"]), str(row["window"]), f"{100 * row['kv_at_4096']:.1f} %",
            *(f"{row['share'][task]:.3f}" for task in tasks), f"{row['mean']:.4f}",
            "-".join(f"{end:.4f}" for end in row["interval_95"]), f"{row['mean_loss_points']:.2f}",
            f"{row['largest_loss_points']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return format_table(header, lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Exact match of the embedded model under calibrated and control maps.")
    parser.add_argument("profile", type=Path, metavar="PROFILE", help="map.profile.json of `redknot profile`")
    parser.add_argument("--n", type=int, default=400, help="prompts of each task and length (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first prompt (%(default)s)")
    parser.add_argument("--lengths", default="1024,2048,4096", help="tokens of a prompt (%(default)s)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="task families (%(default)s)")
    parser.add_argument("--random", type=int, default=10, metavar="N", help="random maps of each size (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--batch-tokens", type=int, default=1 << 16, metavar="N", help="tokens of a batch (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.lengths, args.tasks = [int(length) for length in args.lengths.split(",")], args.tasks.split(",")
    record = load_record(args.profile)
    check_seeds(record, args.first, args.n, args.lengths)
    maps = maps_of(record, args.random)
    cells: list[dict[str, Any]] = []
    for cell in measure(args, maps):
        cells.append(cell)
        done = [
            length
            for length in args.lengths
            if sum(c["length"] == length for c in cells) == len(args.tasks) * len(maps)
        ]
        if args.json is not None and cell["length"] in done:
            # A run on a lent GPU may be cut: lengths that are measured are kept.
            write(args, record, maps, cells, summary(cells, maps, done, args.tasks))
    rows = summary(cells, maps, args.lengths, args.tasks)
    for length in args.lengths:
        print(f"\n{length} tokens, n = {args.n} per task")
        print(table([row for row in rows if row["length"] == length], args.tasks))


def write(
    args: argparse.Namespace,
    record: dict[str, Any],
    maps: Maps,
    cells: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    """The result file: one line for each cell, so that a reader and a diff see them side by side."""
    head = {**origin(args), "calibration": {"data": record["data"], "target": record["target"]}}
    layers = {name: head_map.to_dict()["layers"] for name, head_map in maps.items()}
    body = ",\n".join(json.dumps(cell) for cell in cells)
    text = f'{json.dumps(head)[:-1]},\n"maps": {json.dumps(layers)},\n"summary": {json.dumps(rows)},\n"cells": [\n{body}\n]}}\n'
    args.json.write_text(text)


if __name__ == "__main__":
    main()
