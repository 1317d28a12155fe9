# SPDX-License-Identifier: Apache-2.0
"""Time the global class's attention inside a prefill graph by the number of parts that FlashAttention-3 cuts a tile's keys into.

    python -m eval.bench_splits --json eval/results/splits.json

A prefill graph is recorded before its batches are known, so the number of parts is chosen from the graph's rows alone
(`kernels/fa3_arguments.py`, `splits_for`). Few parts leave processors idle where rows are few. Parts have to be put together again, which takes
the longer the more rows there are. Times are medians over CUDA-graph replays of calls on several layers' pools.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path

import torch

from eval.bench_kernels import DEVICE, DIM, DTYPE, SCALE, graph_time, make_layers
from redknot_sglang.kernels.batch import ClassSpec, ExtendBatch
from redknot_sglang.kernels.extend_fa3 import Fa3Extend
from redknot_sglang.kernels.fa3_arguments import Fa3Arguments, splits_for

PARTS = (1, 2, 3, 4, 6, 9, 16, 32)
# Query heads of a KV head, KV heads, rows of the graph, and the batch's runs of adjacent rows: first position and rows of each.
Run = tuple[int, int]


def ends(documents: int, rows: int, question: int = 30) -> list[Run]:
    """The first `rows` rows of each document of 1,000 tokens, and a question behind them: what `boundary` computes."""
    return [(1000 * number, rows) for number in range(documents)] + [(1000 * documents, question)]


CASES: list[tuple[str, int, int, int, list[Run]]] = [
    ("a question behind a lead", 6, 2, 32, [(51, 30)]),
    ("a question behind 16K", 6, 2, 32, [(16_000, 30)]),
    ("a document and a question", 6, 2, 1088, [(1051, 1030)]),
    ("boundary:16, 16 documents", 6, 2, 320, ends(16, 16)),
    ("boundary:16, 32 documents", 6, 2, 576, ends(32, 16)),
    ("a chunk behind 16K", 6, 2, 1088, [(16_000, 1088)]),
    ("two documents behind 2K, one global head of eight", 4, 1, 2176, [(2100, 2100)]),
    ("boundary:16, 16 documents, one global head of eight", 4, 1, 320, ends(16, 16)),
    ("a question behind 32K, one global head of eight", 4, 1, 64, [(32_000, 60)]),
    ("a chunk behind 32K, one global head of eight", 4, 1, 2176, [(32_000, 2176)]),
    ("two documents behind 2K, eight global heads", 4, 8, 2176, [(2100, 2100)]),
    ("a question behind 32K, eight global heads", 4, 8, 64, [(32_000, 60)]),
    ("a chunk of 512 behind 32K, eight global heads", 4, 8, 512, [(32_000, 512)]),
]


def batch_of(runs: list[Run]) -> ExtendBatch:
    """One request whose rows are these runs, each of which counts as a request of its own; slots are permuted."""
    context = max(position + rows for position, rows in runs)
    slots = torch.randperm(context, device=DEVICE) + 1
    prefix = [position for position, _ in runs]
    total = [position + rows for position, rows in runs]
    prefix_lens, seq_lens = (torch.tensor(values, dtype=torch.int32, device=DEVICE) for values in (prefix, total))
    same = torch.zeros(len(runs), dtype=torch.int64, device=DEVICE)
    to_local = torch.cat([slots.new_zeros(1), slots])
    return ExtendBatch(slots.to(torch.int32)[None], same, to_local, prefix_lens, seq_lens, prefix, total)


def measure(group: int, heads: int, rows: int, runs: list[Run]) -> dict[str, object]:
    """Microseconds of a layer by number of parts; which number is used. Parameters as in CASES."""
    spec = ClassSpec(group, DIM, (heads,), (), 128, 4, DTYPE, DEVICE)
    batch = batch_of(runs)
    context = max(batch.seq_lens_cpu)
    path = Fa3Extend(spec)
    path.init_extend_graphs(rows, max(context, 33_000))
    if not path.plan_extend_graph(batch, rows):
        raise RuntimeError(f"a graph of {rows} rows has no room for {runs}")
    planned: Fa3Arguments | None = path._planned
    assert planned is not None
    layers = make_layers(rows, context, context, heads, group)
    times = {}
    for parts in PARTS:
        path._planned = dataclasses.replace(planned, splits={heads: parts})
        calls = [partial(path.run, "global", layer.q, layer.k, layer.v, SCALE) for layer in layers[:40]]
        times[parts] = graph_time(calls)
    return {"us": times, "used": splits_for(rows, heads, spec)}


def main() -> None:
    """Measure all cases, print a line for each, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name, group, heads, graph, runs in CASES:
        found = measure(group, heads, graph, runs)
        rows.append({"case": name, "group": group, "heads": heads, "rows": graph, "runs": runs, **found})
        print(f"{name}: {found}", flush=True)
    if args.json is not None:
        result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
