# SPDX-License-Identifier: Apache-2.0
"""Relocation of cached keys and values in all layers, beside a copy of as many bytes.

    python -m eval.gpu.relocation --json F

One head class of 36 layers in bf16, D 128, rows at random slots; bytes read and written per second of one launch, and
their share of what a large copy reaches in the same run. Inputs are ready before the clock runs: the table of cos and
sin is not in it. Medians of CUDA-graph replays.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from eval.bench_kernels import DEVICE, DIM, DTYPE, Hardware, graph_time
from redknot_sglang.kernels.kv_layers import KVLayers
from redknot_sglang.kernels.relocate import relocate

LAYERS = 36
CASES = [(8192, 1), (8192, 7), (8192, 8), (32768, 1), (32768, 7), (32768, 8)]


def bench(rows: int, heads: int, hardware: Hardware) -> dict[str, float | int]:
    """One class of `heads` heads a layer, `rows` rows moved to as many other slots."""
    shape = 2 * rows + 1, heads, DIM
    layers = KVLayers(*([torch.randn(shape, dtype=DTYPE, device=DEVICE) for _ in range(LAYERS)] for _ in "kv"))
    slots = torch.randperm(2 * rows, device=DEVICE) + 1
    angle = torch.rand(rows, DIM // 2, device=DEVICE)
    job = partial(relocate, layers, slots[:rows], slots[rows:], angle.cos(), angle.sin(), True)
    # Addresses are copied to the device when they are first asked for, which no graph can capture.
    job()
    microseconds = graph_time([job] * 2)
    moved = 2 * 2 * rows * heads * DIM * 2 * LAYERS
    rate = moved / microseconds
    return {
        "rows": rows,
        "heads": heads,
        "us": microseconds,
        "tb_s": rate / 1e6,
        "share_of_copy": rate / hardware.bandwidth,
    }


def main() -> None:
    """Print a line for each case; write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    hardware = Hardware.measure()
    rows = []
    for case in CASES:
        rows.append(bench(*case, hardware))
        print(" ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    found = {"device": torch.cuda.get_device_name(), "copy_tb_s": hardware.bandwidth / 1e6, "rows": rows}
    args.json.write_text(json.dumps({**found, "shape": {"layers": LAYERS, "head_dim": DIM, "dtype": "bfloat16"}}))


if __name__ == "__main__":
    main()
