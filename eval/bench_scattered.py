# SPDX-License-Identifier: Apache-2.0
"""Check and time the Triton extend where rows are few: scattered rows, and short tails of long prompts.

python -m eval.bench_scattered [--json F] [--rows N] [--tilings] [--no-flashinfer]

One request, bf16, head dimension 128, 4 query heads for each of 8 KV heads, 1 or 2 of them global, the others
local (window 256, sink 4), permuted slots. *Split*: keys of a tile divided over programs, as the plan of this
device says. *Whole*: every tile one program, the same kernel otherwise. *Rows as requests*: FlashInfer's paged
prefill with a request for each row. *Floor*: the products that count at 400 TFLOP/s, the most to expect of Triton
here, or the bytes at the measured copy bandwidth, whichever is longer. Times are microseconds of one layer and
class, medians over 25 CUDA-graph replays of calls on several layers' pools, so that nothing stays in the L2 cache.

Each class is compared with the float32 oracle on a sample of the rows, split and whole on all of them. Exits with
1 if an error is too large.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from eval.bench_kernels import (
    DEVICE,
    DIM,
    DTYPE,
    HEADS,
    SCALE,
    Hardware,
    Layer,
    graph_time,
    host_time,
    make_batches,
    make_layers,
)
from redknot_sglang.kernels.batch import ClassSpec, ExtendBatch, HeadClass, ScatteredBatch
from redknot_sglang.kernels.device_work import Tiling
from redknot_sglang.kernels.extend_flashinfer import FlashInferExtend
from redknot_sglang.kernels.extend_triton import TritonExtend
from redknot_sglang.kernels.paths import AttentionPath
from redknot_sglang.kernels.reference import attend_paged

GROUP, WINDOW, SINK = 4, 256, 4
TRITON_RATE = 400e6  # FLOP per microsecond
# Rows, tokens of the request, and whether the rows are scattered over it or are its last ones.
CASES = [(640, 32768, True), (1638, 32768, True), (4915, 32768, True), (6552, 131072, True)]
CASES += [(128, 32768, False), (8192, 32768, False)]
TILINGS = [
    Tiling(128, 64, 8, 3),
    Tiling(128, 64, 8, 5),
    Tiling(128, 64, 8, 7),
    Tiling(128, 32, 8, 5),
    Tiling(128, 32, 8, 7),
    Tiling(64, 64, 4, 5),
]
# Rows compared with the oracle, and the largest relative errors: of all of them together, and of one.
SAMPLE, TOLERANCE, ROW_TOLERANCE = 128, 8e-3, 5e-2
# Pages listed for FlashInfer's rows at most, 4 bytes each.
MAX_LISTED = 40_000_000


@dataclass(frozen=True)
class Row:
    """One measured cell; times in microseconds, None where not measured."""

    rows: int
    context: int
    scattered: bool
    head_class: HeadClass
    heads: int
    tiling: str
    split: float
    whole: float
    rows_as_requests: float | None
    floor: float
    tflops: float
    parts: int
    plan: float
    launch: float
    error: float
    worst_row: float


def make_rows(rows: int, context: int, scattered: bool) -> tuple[ExtendBatch, list[int]]:
    """The batch and its rows' positions."""
    tail, _ = make_batches(1, rows, context)
    if not scattered:
        return tail, list(range(context - rows, context))
    at = sorted(random.Random(rows).sample(range(context), rows))
    positions = torch.tensor(at, dtype=torch.int32, device=DEVICE)
    plain = replace(
        tail,
        prefix_lens=positions[:1].clone(),
        seq_lens=positions[-1:] + 1,
        prefix_lens_cpu=at[:1],
        seq_lens_cpu=[at[-1] + 1],
    )
    return ScatteredBatch(**vars(plain), positions=positions, positions_cpu=[at]), at


def errors(out: Tensor, want: Tensor) -> tuple[float, float]:
    """Relative error of the whole and of the worst row and head; infinite if a result is not finite."""
    if not bool(out.isfinite().all()):
        return float("inf"), float("inf")
    off = (out.float() - want.float()).norm(dim=-1) / want.float().norm(dim=-1)
    return float((out.float() - want.float()).norm() / want.float().norm()), float(off.max())


def oracle(batch: ExtendBatch, at: list[int], head_class: HeadClass, layer: Layer) -> tuple[Tensor, list[int]]:
    """The oracle's result for a sample of rows, both ends included, and which rows these are."""
    chosen = sorted({0, len(at) - 1, *random.Random(1).sample(range(len(at)), min(SAMPLE, len(at)))})
    positions = [at[i] for i in chosen]
    flat = torch.tensor(positions, dtype=torch.int32, device=DEVICE)
    plain = {name: getattr(batch, name) for name in ExtendBatch.__dataclass_fields__}
    sample = ScatteredBatch(**plain, positions=flat, positions_cpu=[positions])
    want, _ = attend_paged(sample, head_class, layer.q[chosen], layer.k, layer.v, WINDOW, SINK, SCALE)
    return want, chosen


def rows_as_requests(at: list[int], batch: ExtendBatch, heads: int, layers: list[Layer]) -> float | None:
    """Microseconds of FlashInfer with a request for each row; None, and a line why, where it cannot be."""
    spec = ClassSpec(GROUP, DIM, (heads,), (), 0, 0, DTYPE, DEVICE)
    reason: str | None = f"its page lists would hold {sum(at)} entries"
    if sum(at) <= MAX_LISTED:
        reason = FlashInferExtend.why_not(spec)
    if reason is not None:
        print(f"flashinfer is left out for {len(at)} rows: {reason}")
        return None
    starts = torch.tensor(at, dtype=torch.int32, device=DEVICE)
    requests = batch.req_pool_indices.expand(len(at)).contiguous()
    pages = batch.req_to_token, requests, batch.full_to_local
    path = FlashInferExtend(spec)
    path.plan_extend(ExtendBatch(*pages, starts, starts + 1, at, [position + 1 for position in at]))
    return graph_time(calls_of(path, "global", layers), replays=25)


def calls_of(path: AttentionPath, head_class: HeadClass, layers: list[Layer]) -> list[Callable[[], object]]:
    return [partial(path.run, head_class, layer.q, layer.k, layer.v, SCALE) for layer in layers]


def floor(at: list[int], head_class: HeadClass, heads: int, hardware: Hardware) -> tuple[float, float]:
    """FLOP that count, and the microseconds below which the class cannot come."""
    keys = [position + 1 for position in at]
    read = max(keys)
    if head_class == "local":
        keys = [min(n, WINDOW + SINK) for n in keys]
        read = min(read, sum(keys))
    flops = 4.0 * DIM * GROUP * heads * sum(keys)
    moved = 2 * 2 * DIM * heads * (read + GROUP * len(at))
    return flops, max(flops / TRITON_RATE, moved / hardware.bandwidth)


def bench(
    rows: int, context: int, scattered: bool, n_global: int, tiling: Tiling, flashinfer: bool, hardware: Hardware
) -> list[Row]:
    """Both classes of one shape."""
    batch, at = make_rows(rows, context, scattered)
    spec = ClassSpec(GROUP, DIM, (n_global,), (HEADS - n_global,), WINDOW, SINK, DTYPE, DEVICE)
    split, whole = TritonExtend(spec, tiling=tiling), TritonExtend(spec, processors=1, tiling=tiling)
    whole.plan_extend(batch)
    plan = host_time(partial(split.plan_extend, batch))
    results = []
    classes: tuple[tuple[HeadClass, int], ...] = (("global", n_global), ("local", HEADS - n_global))
    for head_class, heads in classes:
        read = context if head_class == "global" or scattered else rows + WINDOW
        layers = make_layers(rows, context, read, heads, GROUP)
        calls = calls_of(split, head_class, layers)
        want, chosen = oracle(batch, at, head_class, layers[0])
        out, all_rows = calls[0](), calls_of(whole, head_class, layers)[0]()
        assert isinstance(out, Tensor) and isinstance(all_rows, Tensor)
        found = [errors(out[chosen], want), errors(all_rows[chosen], want), errors(out, all_rows)]
        del want, out, all_rows
        flops, least = floor(at, head_class, heads, hardware)
        time = graph_time(calls, replays=25)
        unsplit = graph_time(calls_of(whole, head_class, layers), replays=25)
        ours = head_class == "global"
        other = rows_as_requests(at, batch, heads, layers) if flashinfer and ours and scattered else None
        launch = host_time(calls[0])
        error, worst = max(e for e, _ in found), max(e for _, e in found)
        shape = f"{tiling.packed}x{tiling.keys}, {tiling.warps} warps, {tiling.stages} stages"
        parts = split.work[head_class, heads].parts
        cell = Row(
            *(rows, context, scattered, head_class, heads, shape, time, unsplit, other),
            *(least, flops / time / 1e6, parts, plan, launch, error, worst),
        )
        show(cell)
        results.append(cell)
    return results


def show(r: Row) -> None:
    """One line of the table."""
    other = "-" if r.rows_as_requests is None else f"{r.rows_as_requests:.1f}"
    print(
        f"{r.rows:6}{r.context:8} {'scattered' if r.scattered else 'tail':10}{r.head_class:7}{r.heads:2}"
        f"{r.parts:6}{r.split:9.1f}{r.whole:9.1f}{r.whole / r.split:7.2f}{other:>11}{r.floor:8.1f}"
        f"{r.floor / r.split:6.2f}{r.tflops:8.0f}{r.plan:7.0f}{r.launch:7.0f}{r.error:9.1e}{r.worst_row:9.1e}"
        f"  {r.tiling}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--rows", type=int, help="only the cases of so many rows")
    parser.add_argument(
        "--tilings", action="store_true", help="the case of 1,638 rows with other launch shapes as well"
    )
    parser.add_argument("--no-flashinfer", action="store_true", help="leave out rows as requests")
    args = parser.parse_args()
    torch.manual_seed(0)
    hardware = Hardware.measure()
    print(f"copy {hardware.bandwidth / 1e6:.2f} TB/s, matmul {hardware.products / 1e6:.0f} TFLOP/s")
    print(
        "  rows context           class   n parts    split    whole   gain  as reqs   floor share TFLOP/s   plan"
        " launch    error worst row"
    )
    cells: list[Row] = []
    served = Tiling.of(DIM, DTYPE)
    for rows, context, scattered in CASES:
        if args.rows not in (None, rows):
            continue
        for n_global in (1, 2):
            cells += bench(rows, context, scattered, n_global, served, not args.no_flashinfer, hardware)
    for tiling in TILINGS if args.tilings else ():
        cells += bench(1638, 32768, True, 1, tiling, False, hardware)
    if args.json is not None:
        result = {
            "device": torch.cuda.get_device_name(),
            "copy_tb_s": hardware.bandwidth / 1e6,
            "matmul_tflop_s": hardware.products / 1e6,
            "shape": {"kv_heads": HEADS, "group": GROUP, "head_dim": DIM, "window": WINDOW, "sink": SINK}
            | {"dtype": "bfloat16"},
            "unit": "microseconds per layer and class; plan and launch: host microseconds per forward and per call",
            "rows": [asdict(cell) for cell in cells],
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if any(not (cell.error < TOLERANCE and cell.worst_row < ROW_TOLERANCE) for cell in cells):
        raise SystemExit("a result is too far from the oracle, or split from whole")


if __name__ == "__main__":
    main()
