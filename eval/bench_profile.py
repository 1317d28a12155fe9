# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a long profile at a model's shape: what streaming holds beyond the weights.

python -m eval.bench_profile [--shape qwen3-8b] [--tokens 131072] [--methods mass,distortion] [--json F]

Weights and token ids are random: the figures say what a profile costs and nothing about any head. One example goes
through each method, then through the loss under one map with half of the heads local, which is what ablation and greedy
repeat, and reuse sensitivity with the prompt cut into documents of `--document` tokens. Each is measured on its own:
seconds, and the peak of what torch has allocated above what the model took. On a CPU, where torch keeps no such count,
the peak is not measured. The first pass through a layer, which compiles and tunes, is made beforehand on a short prompt.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.provenance import origin
from redknot_sglang.measure.table import format_table
from redknot_sglang.profile.data import Data, random_data
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.model import ProfiledModel, load_model
from redknot_sglang.profile.reuse import reuse_sensitivity
from redknot_sglang.profile.study import Study
from redknot_sglang.work_file import WorkFile

SHAPES = Path(__file__).parent / "shapes"
WINDOWS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
GIB = 1 << 30


def documents(data: Data, size: int) -> Data:
    """The same prompts, all but the first 16 and the last 512 tokens (a quarter of short ones) cut into documents."""
    made = []
    for example in data.examples:
        end = len(example.ids) - min(512, len(example.ids) // 4)
        edges = [*range(16, end, size), end]
        made.append(replace(example, segments=tuple(zip(edges, edges[1:], strict=False))))
    return replace(data, examples=tuple(made))


def measure(label: str, run: Callable[[], object]) -> dict[str, Any]:
    """Seconds of `run` and the peak of what it allocated, in GiB (None on a CPU)."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    begin = time.monotonic()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - begin
    peak = (torch.cuda.max_memory_allocated() - before) / GIB if on_gpu else None
    print(f"{label}: {seconds:.1f} s{'' if peak is None else f', {peak:.2f} GiB'}", flush=True)
    return {"what": label, "seconds": round(seconds, 2), "peak_gib": None if peak is None else round(peak, 3)}


def make_study(model: ProfiledModel, tokens: int, args: argparse.Namespace) -> Study:
    """One prompt of `tokens` random ids with documents in it."""
    data = documents(random_data(model.model.config.vocab_size, (tokens,), 1, 0), args.document)
    return Study(model, data, WorkFile(None, 0), 4, (256,), WINDOWS, args.rows, goal=1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.monotonic()
    model, shape, _ = load_model(args.shape, device, args.dtype, "dummy", args.chunk)
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters()) / GIB
    print(f"{shape.info.architecture}, {weights:.1f} GiB of weights in {time.monotonic() - begin:.0f} s", flush=True)
    found = []
    for tokens in (min(args.tokens, 2 * args.chunk), args.tokens):
        study = make_study(model, tokens, args)
        jobs: dict[str, Callable[[], object]] = {name: partial(METHODS[name], study) for name in args.methods}
        jobs["loss under a map"] = partial(study.loss, study.heads[::2], 256)
        jobs["reuse"] = partial(reuse_sensitivity, study, "output")
        found = [measure(f"{name}, {tokens} tokens", job) for name, job in jobs.items()]
    peaks = [row["peak_gib"] for row in found if row["peak_gib"] is not None]
    return {
        **origin(args),
        "architecture": shape.info.architecture,
        "weights_gib": round(weights, 2),
        "measured": found,
        "seconds": round(sum(row["seconds"] for row in found), 1),
        "peak_gib": max(peaks) if peaks else None,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Memory and time of a long profile at a model's shape.")
    parser.add_argument(
        "--shape", type=Path, default=SHAPES / "qwen3-8b", metavar="DIR", help="folder with config.json"
    )
    parser.add_argument("--tokens", type=int, default=131072, metavar="N", help="length of the prompt (%(default)s)")
    parser.add_argument("--methods", default="mass,distortion", help="%(default)s")
    parser.add_argument("--rows", type=int, default=1024, metavar="N", help="rows looked at (%(default)s)")
    parser.add_argument("--chunk", type=int, default=4096, metavar="N", help="rows of a pass (%(default)s)")
    parser.add_argument("--document", type=int, default=2048, metavar="N", help="tokens of a document (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="%(default)s")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    result = run(args)
    rows = [
        [r["what"], f"{r['seconds']:.1f}", "-" if r["peak_gib"] is None else f"{r['peak_gib']:.2f}"]
        for r in result["measured"]
    ]
    print(format_table(["", "seconds", "GiB beyond weights"], rows))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
