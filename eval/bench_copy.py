# SPDX-License-Identifier: Apache-2.0
"""Time copies of KV rows between host memory and one GPU, and what they cost a decode that runs beside them; no server, half a minute.

    python -m eval.bench_copy --json out/copy.json

Rows of keys and of values, layer after layer, as the host tier moves them; slots on the device are permuted. Ways: `stock`, SGLang's
kernel with its own two blocks; `kernel`, the same with as many as our copies take for the size; the copy engine with a staging buffer,
for host rows in one run, in runs of 1,024 and in runs of 128, whether or not a server would take that way for runs so short (`planned`
says which it takes). GB/s are of whole passes over all layers; `launch_us` is what a layer takes the host. The stand-in of a decode step
reads weights by products with four rows; `beside` is its time while a pass runs, over its time alone. Medians; n of each is in the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.gpu.stand_in import Step
from eval.provenance import origin
from redknot_sglang.errors import CliError
from redknot_sglang.kernels.copy_rows import copy_rows
from redknot_sglang.kernels.row_runs import RowRuns
from redknot_sglang.kernels.run_copies import SIZES, Buffers, Sizes, Staging, load_rows, save_rows
from redknot_sglang.measure.table import format_table

SIZES_OF_ROWS, ROWS, LAYERS = (256, 512, 2048), (32768, 131072), 36
WAYS = {"stock": None, "kernel": None, "one run": 0, "runs of 1024": 1024, "runs of 128": 128}
DIRECTIONS = ("load", "save")
# Distinct memory at each end. Layers share it from there on: it is beyond what caches hold, and pinning more takes longer than copying.
_MEMORY = 2 << 30
# Passes that are timed; one, if the first takes longer than this.
_PASSES, _LONG_MS = 3, 300.0


def host_rows(count: int, run: int, generator: torch.Generator) -> Tensor:
    """Rows of host memory that lie in runs of so many, which come in any order and do not touch.

    count: rows, a multiple of `run`. run: rows of each; 0 for all in one. Returns int64 [count], below 2 x count.
    """
    if not run:
        return torch.arange(count)
    begins = torch.randperm(count // run, generator=generator) * 2 * run
    return (begins[:, None] + torch.arange(run)).flatten()


class Ends:
    """Memory at both ends for all layers, of rows of one size, with room for twice the rows of a copy."""

    def __init__(self, size: int, count: int, host: Tensor, device: Tensor) -> None:
        """size: bytes of a row. count: rows of a copy. host, device: uint8, all memory of each end."""
        slots, self._layers = 2 * count, []
        each = slots * size
        for at in range(0, min(LAYERS, len(host) // (2 * each)) * 2 * each, 2 * each):
            ends = (
                tuple(end[a : a + each].view(torch.bfloat16).view(slots, 1, -1) for a in (at, at + each))
                for end in (device, host)
            )
            self._layers.append(Buffers(*ends))

    def layer(self, number: int) -> Buffers:
        """The memory of one of all layers."""
        return self._layers[number % len(self._layers)]


def copier(name: str, direction: str, ends: Ends, count: int) -> Callable[[int], None]:
    """What copies one layer, whose number it takes. name: of `WAYS`. direction: of `DIRECTIONS`. count: rows."""
    generator = torch.Generator().manual_seed(0)
    host = host_rows(count, WAYS[name] or 0, generator)
    device = torch.randperm(2 * count, generator=generator)[:count].cuda()
    if WAYS[name] is None:
        rows, copy = host.cuda(), copy_rows if name == "kernel" else stock

        def by_kernel(layer: int) -> None:
            pair = ends.layer(layer)
            if direction == "load":
                copy(pair.host, pair.device, rows, device)
            else:
                copy(pair.device, pair.host, device, rows)

        return by_kernel
    runs = RowRuns(host)
    order = torch.from_numpy(runs.order)
    rows, slots = host[order].cuda(), device[order.cuda()]
    # With one byte as the least even the shortest runs go by the engine.
    staging = Staging(slots.device, Sizes(1, SIZES["cuda"].staging))
    move = load_rows if direction == "load" else save_rows
    return lambda layer: move(ends.layer(layer), staging, rows, slots, runs)


def stock(sources: Sequence[Tensor], targets: Sequence[Tensor], source_rows: Tensor, target_rows: Tensor) -> None:
    """SGLang's own call of its kernel."""
    from sgl_kernel import kvcacheio

    (keys, values), (to_keys, to_values) = sources, targets
    kvcacheio.transfer_kv_per_layer(keys, to_keys, values, to_values, source_rows, target_rows, keys[0].nbytes, 2)


def planned(name: str, size: int, count: int) -> str:
    """How a server copies such rows of `size` bytes, `engine` or `kernel`; nothing for ways that are kernels."""
    run = WAYS[name]
    if run is None:
        return ""
    return "engine" if (run or count) * size >= SIZES["cuda"].least else "kernel"


def one_pass(copy: Callable[[int], None], stream: Any) -> tuple[Any, Any, float]:
    """Copy all layers. Returns events at both ends, which are over, and the seconds that the host took to start it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        start = time.perf_counter()
        begin.record()
        for layer in range(LAYERS):
            copy(layer)
        end.record()
        launched = time.perf_counter() - start
    end.synchronize()
    return begin, end, launched


def measure(copy: Callable[[int], None], moved: int, step: Step | None) -> dict[str, Any]:
    """Time one way. moved: bytes of a pass. step: what to run beside it, or None."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        copy(0)
    stream.synchronize()
    times: list[float] = []
    launches: list[float] = []
    while not times or (len(times) < _PASSES and times[0] < _LONG_MS):
        begin, end, launched = one_pass(copy, stream)
        times.append(begin.elapsed_time(end))
        launches.append(1e6 * launched / LAYERS)
    median = statistics.median(times)
    found: dict[str, Any] = {"gb_s": moved / median / 1e6, "launch_us": statistics.median(launches), "n": len(times)}
    if step is not None:
        steps = step.beside(lambda: one_pass(copy, stream)[:2], median)
        found |= {
            "steps": len(steps),
            "step_ms": statistics.median(steps) if steps else None,
            "alone_ms": step.alone_ms,
        }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each way of each size."""
    lines = []
    for row in rows:
        step = row.get("step_ms")
        lines.append([
            row["way"], row["direction"], str(row["bytes"]), str(row["rows"]), row["planned"], f"{row['gb_s']:.1f}",
            f"{row['launch_us']:.0f}", f"{step / row['alone_ms']:.3f}" if step else "", str(row["n"]), str(row.get("steps", "")),
        ])  # fmt: skip
    return format_table("way,direction,bytes,rows,planned,GB/s,launch us,beside,n,steps".split(","), lines)


def run(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure everything, and write what there is after each line. path: the file. head: its first fields."""
    host = torch.empty(_MEMORY, dtype=torch.uint8, pin_memory=True)
    device, step = torch.empty(_MEMORY, dtype=torch.uint8, device="cuda"), Step()
    rows = []
    for size, count in product(SIZES_OF_ROWS, ROWS):
        ends = Ends(size, count, host, device)
        for direction, name in product(DIRECTIONS, WAYS):
            beside = step if count == ROWS[0] else None
            found = measure(copier(name, direction, ends, count), 2 * size * count * LAYERS, beside)
            what = {"way": name, "direction": direction, "bytes": size, "rows": count}
            rows.append({**what, "planned": planned(name, size, count), **found})
            path.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    return rows


def main() -> None:
    """Run from the command line; without a GPU it ends with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="write the result there")
    args = parser.parse_args()
    try:
        if not torch.cuda.is_available():
            raise CliError("copies between host and GPU are timed, and torch finds no GPU: run it where there is one")
        args.json.parent.mkdir(parents=True, exist_ok=True)
        print(table(run(args.json, origin(args))))
    except CliError as error:
        print(f"bench_copy: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
