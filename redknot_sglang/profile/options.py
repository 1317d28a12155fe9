# SPDX-License-Identifier: Apache-2.0
"""What the user of `redknot profile` asks for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The options of one profile; `docs/calibrate.md` says what each is for.

    model: the model's folder. data: `tasks`, `random`, or the path of a JSONL of prompts. out: the head map to write.
    target_kv: share of stock's KV bytes, or max_loss: nats per token above dense; one of both is None. at: tokens at which
    bytes count, None for the longest example. tasks: names separated by commas, None for all. task_dir: task package, None
    for the checkout's. lengths: tokens of generated prompts, ascending; n: of each task and length, from `seed` on.
    methods, reuse, points, retrieval: as in `run.Plan`. sink, windows, curve, rows, gate_*: as in `study.Study`. device: cpu, cuda,
    cuda:N or auto. dtype: a torch name, or auto for the model's. load_format: auto, or dummy for random weights. chunk: rows
    of a pass through a layer, None for what suits the device. fresh: whether what an earlier run measured is forgotten.
    """

    model: Path
    data: str
    out: Path
    target_kv: float | None
    max_loss: float | None
    at: int | None
    tasks: str | None
    task_dir: Path | None
    lengths: tuple[int, ...]
    n: int
    seed: int
    methods: tuple[str, ...]
    reuse: str
    points: int
    retrieval: int
    sink: int
    windows: tuple[int, ...]
    curve: tuple[int, ...]
    rows: int
    gate_steps: int
    gate_l1: float
    gate_rate: float
    gate_tokens: int
    device: str
    dtype: str
    load_format: str
    chunk: int | None
    fresh: bool
