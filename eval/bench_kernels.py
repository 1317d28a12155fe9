# SPDX-License-Identifier: Apache-2.0
"""Time the attention paths on one GPU against stock dense attention and against what the hardware allows.

python -m eval.bench_kernels [--json F] [--quick] [--paths fa3,flashinfer,triton]

One layer of 8 KV heads of dimension 128 in bf16, ``--group`` query heads each, one KV head global, the others
local (window 512 if not said otherwise, sink 4), randomly permuted slots. *Stock* is what SGLang runs for that layer with every
head dense: FA3 (page size 1) for extend, FlashInfer's tensor-core decode, or where these are missing the
fastest dense path there is. *Floor* is the time of the bytes that must be read at the measured copy
bandwidth, or of the products at the measured matmul rate, whichever is longer. The rate of a class counts the
products of the pairs inside its heads' reach for an extend, the bytes of the KV it must read for a decode. Times are medians over
CUDA-graph replays of calls on several layers' pools, so that nothing stays in the L2 cache; plan times are
host microseconds, once per forward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from eval.gpu.kernel_work import Work
from redknot_sglang.kernels.batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass
from redknot_sglang.kernels.paths import AttentionPath
from redknot_sglang.kernels.select import PAIRS, available_paths

HEADS, DIM, SINK = 8, 128, 4
DTYPE, DEVICE = torch.bfloat16, torch.device("cuda")
SCALE = DIM**-0.5
# Requests, rows, context and window.
EXTENDS = [
    (1, 8192, 8192, 512),
    (1, 8192, 32768, 512),
    (1, 8192, 32768, 256),
    (1, 8192, 32768, 1024),
    (1, 8192, 32768, 4096),
    (8, 1024, 32768, 512),
    (1, 8192, 131072, 512),
    (1, 128, 32768, 512),
]
# Layers are cycled through until they exceed the L2 cache, within a share of the memory.
L2_BYTES, MAX_BYTES = 200 << 20, 8 << 30
DECODES = [(1, 8192), (1, 32768), (1, 131072), (8, 32768), (8, 131072), (64, 8192), (64, 32768)]
DECODE_WINDOW = 512


@dataclass(frozen=True)
class Row:
    """One measured cell: times in microseconds per layer, plan in microseconds of host time per forward.

    Rates in TFLOP/s of an extend, TB/s of a decode.
    """

    phase: str
    bs: int
    rows: int
    context: int
    window: int
    path: str
    both: float
    both_two_streams: float
    global_heads: float
    local_heads: float
    stock: float
    stock_path: str
    floor: float
    plan: float
    global_rate: float
    local_rate: float
    stock_rate: float


@dataclass(frozen=True)
class Layer:
    """One layer's pools of a class and its queries."""

    k: Tensor
    v: Tensor
    q: Tensor


Layers = dict[HeadClass, list[Layer]]


@dataclass(frozen=True)
class Hardware:
    """Measured here and now: bytes per microsecond of a large copy, FLOP per microsecond of a product."""

    bandwidth: float
    products: float

    @classmethod
    def measure(cls) -> Hardware:
        """A 1 GiB copy (read and write counted), the faster of a memcpy and a kernel, and an 8192-cubed bf16 matmul."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        # A graph's memcpy moved 2.8 TB/s on an H200 whose attention read 4.4.
        words, out = source.view(torch.int32), target.view(torch.int32)
        copy = min(
            graph_time([c] * 4) for c in (lambda: target.copy_(source), lambda: torch.bitwise_not(words, out=out))
        )
        a = torch.randn(8192, 8192, dtype=DTYPE, device=DEVICE)
        product = graph_time([lambda: a @ a] * 4)
        return cls(2 * source.numel() / copy, 2 * 8192**3 / product)


def graph_time(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Median microseconds per call of these calls captured into one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(replays + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[2:])


def host_time(call: Callable[[], object], repeats: int = 15) -> float:
    """Median host microseconds of a call on an idle device."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def make_batches(bs: int, rows: int, context: int) -> tuple[ExtendBatch, DecodeBatch]:
    """Requests of one length whose tokens lie in permuted slots of both classes, every token alive."""
    slots = torch.randperm(bs * context, device=DEVICE) + 1
    full_to_local = torch.cat([slots.new_zeros(1), torch.randperm(bs * context, device=DEVICE) + 1])
    shared = slots.view(bs, context).to(torch.int32), torch.arange(bs, device=DEVICE), full_to_local
    lens = torch.full((bs,), context, dtype=torch.int32, device=DEVICE)
    extend = ExtendBatch(*shared, lens - rows, lens, [context - rows] * bs, [context] * bs)
    return extend, DecodeBatch(*shared, lens, [context] * bs)


def make_layers(n_rows: int, slots: int, read: int, heads: int, group: int) -> list[Layer]:
    """Random pools and queries: as many layers as make reading ``read`` tokens of each overflow L2."""
    token = heads * DIM * 4
    count = max(2, min(-(-L2_BYTES // (read * token)), MAX_BYTES // (slots * token)))
    q = torch.randn(n_rows, group * heads, DIM, dtype=DTYPE, device=DEVICE)
    pools = [torch.randn(2, slots + 1, heads, DIM, dtype=DTYPE, device=DEVICE) for _ in range(count)]
    return [Layer(pool[0], pool[1], q) for pool in pools]


def calls_of(path: AttentionPath, layers: Layers, two_streams: bool = False) -> list[Callable[[], object]]:
    """One call per layer over all its classes; with two streams, the local class beside the global one."""
    side = torch.cuda.Stream()

    def call(index: int) -> None:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        for head_class, own in layers.items():
            layer = own[index]
            with torch.cuda.stream(side if two_streams and head_class == "local" else main):
                path.run(head_class, layer.q, layer.k, layer.v, SCALE)
        main.wait_stream(side)

    return [partial(call, i) for i in range(min(map(len, layers.values())))]


def specs(group: int, window: int) -> tuple[ClassSpec, ClassSpec]:
    """The head map under test, and all heads global: what stock computes."""
    split = ClassSpec(group, DIM, (1,), (HEADS - 1,), window, SINK, DTYPE, DEVICE)
    return split, ClassSpec(group, DIM, (HEADS,), (), window, SINK, DTYPE, DEVICE)


def floor(hardware: Hardware, far: Work, near: Work) -> float:
    """Microseconds per layer below which the split layer cannot come on this hardware."""
    flops = far.flops + (HEADS - 1) * near.flops
    queries = far.bs * far.rows * far.group * HEADS * DIM * 2 * 2
    read = far.kv_bytes + (HEADS - 1) * near.kv_bytes + queries
    return max(flops / hardware.products, read / hardware.bandwidth)


def build(
    phase: str, name: str, spec: ClassSpec, extend: ExtendBatch, decode: DecodeBatch
) -> tuple[AttentionPath, Callable[[], None]]:
    """The path of a phase, "extend" or "decode", out of a pair, and what plans the phase's batch."""
    if phase == "extend":
        extends = PAIRS[name].extend(spec)
        return extends, partial(extends.plan_extend, extend)
    chosen = PAIRS[name].decode_for(spec)
    if chosen is None:
        raise RuntimeError(f"{name} has no decode path here: {PAIRS[name].why_not(spec)}")
    decodes = chosen(spec)
    return decodes, partial(decodes.plan_decode, decode)


def bench(
    phase: str, bs: int, rows: int, context: int, window: int, group: int, names: list[str], hw: Hardware
) -> list[Row]:
    """All paths on one shape."""
    extend, decode = make_batches(bs, rows, context)
    split, dense = specs(group, window)
    far, near = (Work(bs, rows, context, min(reach, context), group, DIM) for reach in (context, window + SINK))

    def planned(name: str, spec: ClassSpec) -> tuple[AttentionPath, Callable[[], None]]:
        path, plan = build(phase, name, spec, extend, decode)
        plan()
        return path, plan

    slots = bs * context
    layers: Layers = {
        "global": make_layers(bs * rows, slots, slots, 1, group),
        "local": make_layers(bs * rows, slots, near.kv_tokens, HEADS - 1, group),
    }
    measured = {}
    for name in names:
        path, plan = planned(name, split)
        measured[name] = (
            graph_time(calls_of(path, layers)),
            graph_time(calls_of(path, layers, two_streams=True)),
            graph_time(calls_of(path, {"global": layers["global"]})),
            graph_time(calls_of(path, {"local": layers["local"]})),
            host_time(plan),
        )
    layers.clear()
    layers["global"] = make_layers(bs * rows, slots, slots, HEADS, group)
    # The pair fa3 decodes by FlashInfer, and counting that twice would say nothing.
    candidates = [n for n in names if n != "triton" and (phase == "extend" or n != "fa3")] or ["triton"]
    stock = {n: graph_time(calls_of(planned(n, dense)[0], layers)) for n in candidates}
    fastest = min(stock, key=lambda n: stock[n])
    least, stock_rate = floor(hw, far, near), far.rate(phase, HEADS, stock[fastest])
    return [
        Row(
            phase, bs, rows, context, window, name, *times[:4], stock[fastest], fastest, least, times[4],
            far.rate(phase, 1, times[2]), near.rate(phase, HEADS - 1, times[3]), stock_rate,
        )
        for name, times in measured.items()
    ]  # fmt: skip


def show(rows: list[Row], hardware: Hardware) -> None:
    """The table."""
    print(f"copy {hardware.bandwidth / 1e6:.2f} TB/s, matmul {hardware.products / 1e6:.0f} TFLOP/s")
    print(
        "phase   bs  rows context window path         layer 2 streams   global   local    stock by"
        "           gain   floor  plan  rates: global  local  stock"
    )
    for r in rows:
        print(
            f"{r.phase:7}{r.bs:3}{r.rows:6}{r.context:8}{r.window:7} {r.path:10}{r.both:8.1f}{r.both_two_streams:10.1f}"
            f"{r.global_heads:9.1f}{r.local_heads:8.1f}{r.stock:9.1f} {r.stock_path:10}"
            f"{r.stock / min(r.both, r.both_two_streams):6.2f}{r.floor:8.1f}{r.plan:6.0f}"
            f"{r.global_rate:15.4g}{r.local_rate:7.4g}{r.stock_rate:7.4g}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--quick", action="store_true", help="two shapes of each phase")
    parser.add_argument("--paths", default="fa3,flashinfer,triton", help="comma-separated")
    parser.add_argument("--group", type=int, default=4, help="query heads per KV head")
    args = parser.parse_args()
    reasons = available_paths(specs(args.group, DECODE_WINDOW)[0])
    names = []
    for name in args.paths.split(","):
        if reasons[name] is None:
            names.append(name)
        else:
            print(f"{name} is left out: {reasons[name]}")
    hardware = Hardware.measure()
    rows: list[Row] = []
    for bs, n, context, window in EXTENDS[1:3] if args.quick else EXTENDS:
        rows += bench("extend", bs, n, context, window, args.group, names, hardware)
    for bs, context in DECODES[1:4:2] if args.quick else DECODES:
        rows += bench("decode", bs, 1, context, DECODE_WINDOW, args.group, names, hardware)
    show(rows, hardware)
    if args.json is not None:
        result = {
            "device": torch.cuda.get_device_name(),
            "copy_tb_s": hardware.bandwidth / 1e6,
            "matmul_tflop_s": hardware.products / 1e6,
            "shape": {"kv_heads": HEADS, "global": 1, "group": args.group, "head_dim": DIM}
            | {"sink": SINK, "dtype": "bfloat16"},
            "unit": "microseconds per layer; plan: host microseconds per forward; rates: TFLOP/s of extends, TB/s of decodes",
            "rows": [vars(row) for row in rows],
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
