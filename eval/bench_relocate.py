# SPDX-License-Identifier: Apache-2.0
"""Relocation on one GPU against a copy of the same bytes measured in the same run.

python -m eval.bench_relocate [--json F]

36 layers of head dimension 128 in bf16 and as many heads each as the class has, rows from random slots to random slots.
Bytes are K and V read and written; the copy is one of 1 GiB. Times are medians over CUDA-graph replays; *turn* is what cos
and sin of the rows cost, once for all layers.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.bench_kernels import DEVICE, DIM, DTYPE, Hardware, graph_time
from redknot_sglang.kernels.relocate import KVLayers, Rotation
from redknot_sglang.kernels.triton_relocate import launch_relocate

LAYERS = 36
POSITIONS = 131072


def measure(rows: int, heads: int, pairs: int, hardware: Hardware, rotation: Rotation) -> dict[str, Any]:
    """One cell: microseconds, TB/s and share of the copy's bandwidth."""
    buffers = [torch.randn(2, 2 * rows + 1, heads, DIM, dtype=DTYPE, device=DEVICE) for _ in range(LAYERS)]
    layers = KVLayers([b[0] for b in buffers], [b[1] for b in buffers])
    assert layers.addresses.is_cuda
    slots = torch.randperm(2 * rows, device=DEVICE) + 1
    origin, position = torch.randint(POSITIONS, (2, rows), device=DEVICE).unbind()
    cos, sin = rotation.turn(origin, position)
    move = partial(launch_relocate, layers, slots[:rows], slots[rows:], cos, sin, True, pairs)
    spent = graph_time([move])
    moved = 4 * LAYERS * rows * heads * DIM * DTYPE.itemsize
    return {
        "rows": rows,
        "heads": heads,
        "pairs": pairs,
        "us": spent,
        "tb_s": moved / spent / 1e6,
        "of_copy": moved / spent / hardware.bandwidth,
        "turn_us": graph_time([partial(rotation.turn, origin, position)]),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", default="16,32,64", help="(row, head) pairs of a program to try (%(default)s)")
    args = parser.parse_args()
    hardware = Hardware.measure()
    rotation = Rotation(torch.randn(POSITIONS, DIM, device=DEVICE), is_neox=True)
    print(f"copy {hardware.bandwidth / 1e6:.2f} TB/s")
    cells = []
    for rows, heads in ((32768, 8), (8192, 8), (32768, 7), (4096, 7), (32768, 1), (8192, 1), (131072, 1)):
        for pairs in map(int, args.pairs.split(",")):
            cell = measure(rows, heads, pairs, hardware, rotation)
            cells.append(cell)
            print(
                "{rows:7} rows {heads} heads {pairs:3} pairs {us:9.1f} us {tb_s:5.2f} TB/s {of_copy:.2f} turn {turn_us:.1f} us".format(
                    **cell
                )
            )
    if args.json is not None:
        result = {"device": torch.cuda.get_device_name(), "copy_tb_s": hardware.bandwidth / 1e6, "cells": cells}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
