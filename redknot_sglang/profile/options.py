# SPDX-License-Identifier: Apache-2.0
"""The options of `redknot profile`, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The options of one profile; docs/calibrate.md says what each is for.

    model: the model's folder.
    data: `tasks`, `random`, or the path of a JSONL file of prompts or of a .txt file.
    out: the head map to write.
    target_kv: share of stock's KV bytes that the map may keep, or None.
    max_loss: nats per token that the map may lose, or None; one of these two is given.
    target: what a loss is, one of `objective.TARGETS`.
    own_tokens: tokens that dense attention says to a prompt at most, under the target `own`.
    at: tokens of the prefix whose bytes count, or None for the longest example's.
    tasks: names of tasks separated by commas, or None for all.
    task_dir: folder of the task package, or None for the checkout's.
    lengths: tokens of generated prompts or of pieces of a text, ascending.
    n: examples of each task and length, or pieces of a text of each length.
    seed: seed of the first of them; the others follow.
    methods: names of methods to measure.
    reuse: one of `reuse.LEVELS`.
    points: sizes of maps to measure for each method and window.
    retrieval: how many retrieval heads the map is to have; 0 if nobody is to look for them.
    sink: tokens of the sink.
    windows: windows, in tokens, that the map may have.
    curve: windows, in tokens, for which mass and distortion are measured, too.
    rows: rows of an example that mass and distortion look at.
    gate_steps: steps of the optimiser of `gates`.
    gate_l1: weight of the mean gate in its loss.
    gate_rate: its learning rate.
    gate_tokens: tokens of the longest example that it takes.
    device: `cpu`, `cuda`, `cuda:N` or `auto`.
    dtype: a torch dtype's name, or `auto` for the model's.
    load_format: `auto`, or `dummy` for random weights.
    chunk: rows that pass a layer at a time, or None for what suits the device.
    fresh: whether to forget what an earlier run for the same map measured.
    """

    model: Path
    data: str
    out: Path
    target_kv: float | None
    max_loss: float | None
    target: str
    own_tokens: int
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
