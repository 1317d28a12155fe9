# SPDX-License-Identifier: Apache-2.0
"""What each repair policy of segmented mode keeps of the exact answers, on the embedded model.

python -m eval.bench_repair [--n 400] [--first 0] [--lengths 2048,4096] [--policies P,...] [--json F] [--time-limit S]

Segments are the documents. Their order is drawn anew for each prompt: what an answer needs is given by keys and
ordinals, never by the place, so in four families any order asks the same question. In crossdoc a use (`box A red`) must
come after its definition (`code red anchor`), or the causal model could not resolve it where it stands either; where
the drawn order has them the other way round, those two documents change places. Use and definition may be any distance
apart. `offset` in the results tells how far into its document the use stands, which decides what `boundary:k` can reach.

Exact match of the whole answer and its end marker, teacher forced: greedy decoding gives the answer if and only if each
of its tokens is the argmax at its place. All policies see the same prompts, and each prompt's dense and isolated passes
are shared, so differences between policies are paired. Examples use the evaluation seeds from `--first` on (eval/tasks:
disjoint from training by construction); eval/merge_repair.py joins the results of processes that ran side by side. A policy is written as in eval/segmented.py, with `+lead` behind it for lead
policy `lead`. Rounds go over all tasks and lengths, so a run cut by its time limit is smaller, not lopsided. The share of
computed rows leaves out the causal pass by which blend (its early layers) and oracle (all layers) choose.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.provenance import origin
from eval.segmented import SegmentedModel
from eval.tasks import TASKS, Example, make_example, render
from eval.tasks.examples import EVALUATION
from eval.tasks.vocabulary import END, USER, encode, token_id
from redknot_sglang.measure.statistics import wilson_interval
from redknot_sglang.measure.table import format_table

MODEL = Path(__file__).parent / "model"
SHUFFLE = 1
POLICIES = (
    "dense,none,boundary:16,boundary:64,blend:0.05,blend:0.08,cacheblend:0.05,random:0.05,oracle:0.05,heads,"
    "none+lead,boundary:16+lead,blend:0.05+lead,heads+lead"
)
Job = tuple[str, int, int]


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt and its answer, its segments, and the token offset of a crossdoc use, else -1."""

    job: Job
    ids: list[int]
    answer: list[int]
    segments: list[tuple[int, int]]
    offset: int


@dataclass
class Cell:
    """One policy on one task at one length; tensors, so that the device is not waited for at each prompt."""

    hits: list[Tensor] = field(default_factory=list)
    computed: int = 0
    tokens: int = 0


Cells = defaultdict[tuple[str, int, str], Cell]
Offsets = defaultdict[tuple[str, int], list[int]]


def crossdoc_places(example: Example) -> tuple[int, int, int]:
    """Documents of a crossdoc example's definition and use, and the token offset of the mark in the use.

    Raises ValueError if the documents do not hold them.
    """
    kind, label, value = example.answer.split()
    use = f"{kind} {label} "
    where, text = next((i, d) for i, d in enumerate(example.documents) if f"\n{use}" in d)
    begin = text.index(f"\n{use}") + 1
    mark = text[begin:].split(maxsplit=3)[2]
    definition = f"\n{'code' if kind == 'box' else kind} {mark} {value}\n"
    source = next((i for i, d in enumerate(example.documents) if definition in d), None)
    if source is None:
        raise ValueError(f"no definition for {example.answer!r}")
    return source, where, len(encode(text[: begin + len(use) - 1]))


def shuffled(example: Example, rng: np.random.Generator) -> tuple[Example, int]:
    """The example with its documents in another order (see the module), and the offset of a crossdoc use, else -1."""
    order, offset = rng.permutation(len(example.documents)).tolist(), -1
    if TASKS[example.task].causal_only:
        source, use, offset = crossdoc_places(example)
        a, b = order.index(source), order.index(use)
        if a > b:
            order[a], order[b] = use, source
    return replace(example, documents=[example.documents[i] for i in order]), offset


def make_prompt(job: Job) -> Prompt:
    """Prompt of (task, tokens, seed)."""
    task, length, seed = job
    rng = np.random.default_rng(np.random.SeedSequence([EVALUATION, list(TASKS).index(task), length, seed, SHUFFLE]))
    example, offset = shuffled(make_example(task, length, seed), rng)
    ids = encode(render(example))
    ends = np.cumsum([ids.index(token_id(USER)) + 1, *(len(encode(d)) for d in example.documents)]).tolist()
    return Prompt(job, ids, encode(example.answer + END), list(zip(ends, ends[1:], strict=False)), offset)


def make_prompts(jobs: list[Job]) -> Iterator[Prompt]:
    """All prompts in order, made by other processes where there are cores for them."""
    spare = min(8, (os.cpu_count() or 1) - 2)
    if spare < 1:
        yield from map(make_prompt, jobs)
        return
    # Spawned, not forked: this process has threads, and soon a CUDA context.
    with multiprocessing.get_context("spawn").Pool(spare) as pool:
        yield from pool.imap(make_prompt, jobs, chunksize=8)


def ask(model: SegmentedModel, prompt: Prompt, policy: str, cell: Cell) -> None:
    """Add one prompt under a policy to its cell. Raises ValueError for an unknown policy."""
    repair, _, lead = policy.partition("+")
    seed = prompt.job[2]
    state = model.prefill(prompt.ids, prompt.segments, repair, lead or "none", seed, prompt.answer)
    wanted = torch.tensor(prompt.answer, device=model.device)
    cell.hits.append((state.logits[:-1].argmax(-1) == wanted).all())
    cell.computed += state.computed
    cell.tokens += len(prompt.ids)


def measure(args: argparse.Namespace, cells: Cells, offsets: Offsets) -> bool:
    """Fill the cells; whether all prompts were asked before the time limit."""
    begin = time.monotonic()
    jobs = [
        (task, length, seed)
        for seed in range(args.first, args.first + args.n)
        for length in args.lengths
        for task in args.tasks
    ]
    model = SegmentedModel(MODEL, MODEL / "head_map.json", args.device, getattr(torch, args.dtype))
    for done, prompt in enumerate(make_prompts(jobs)):
        # Looked at between prompts, so every policy has seen the same ones.
        if time.monotonic() - begin > args.time_limit:
            return False
        task, length, _ = prompt.job
        for policy in args.policies:
            ask(model, prompt, policy, cells[task, length, policy])
        offsets[task, length].append(prompt.offset)
        if done % (25 * len(args.tasks) * len(args.lengths)) == 0:
            print(f"{done} of {len(jobs)} prompts, {time.monotonic() - begin:.0f} s", flush=True)
    return True


def as_json(task: str, length: int, policy: str, cell: Cell) -> dict[str, Any]:
    """A cell for the result file; `hits` has a digit for each prompt, seed 0 first. Waits for the device."""
    hits = [int(hit) for hit in torch.stack(cell.hits).tolist()]
    low, high = wilson_interval(sum(hits), len(hits))
    return {
        "task": task, "length": length, "policy": policy, "right": sum(hits), "n": len(hits), "low": round(low, 4),
        "high": round(high, 4), "computed_share": round(cell.computed / cell.tokens, 4), "hits": "".join(map(str, hits)),
    }  # fmt: skip


def print_table(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Exact match for each task, their mean, the mean's difference to dense in points, and the share of computed rows."""
    for length in args.lengths:
        lines, dense = [], None
        for policy in args.policies:
            of_task = {r["task"]: r for r in rows if (r["length"], r["policy"]) == (length, policy)}
            if not of_task:
                continue
            rates = [of_task[task]["right"] / of_task[task]["n"] if task in of_task else None for task in args.tasks]
            known = [rate for rate in rates if rate is not None]
            mean = sum(known) / len(known)
            dense = mean if policy == "dense" else dense
            share = sum(r["computed_share"] for r in of_task.values()) / len(of_task)
            cells = ["-" if rate is None else f"{rate:.3f}" for rate in rates]
            change = "-" if dense is None else f"{100 * (mean - dense):+.1f}"
            lines.append([policy, *cells, f"{mean:.3f}", change, f"{share:.3f}"])
        print(f"\n{length} tokens, n = {max((r['n'] for r in rows if r['length'] == length), default=0)}")
        print(format_table(["policy", *args.tasks, "mean", "points", "rows"], lines))


def main() -> None:
    """Measure, print, write; what was measured is written when the time limit or an interrupt ends the run, too."""
    parser = argparse.ArgumentParser(description="Exact match of the repair policies of segmented mode.")
    parser.add_argument("--n", type=int, default=400, help="prompts of each task and length (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first prompt (%(default)s)")
    parser.add_argument("--lengths", default="2048,4096", help="tokens of a prompt (%(default)s)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="task families (%(default)s)")
    parser.add_argument("--policies", default=POLICIES, help="eval/segmented.py has their names (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--time-limit", type=float, default=480, metavar="S", help="seconds (%(default)s)")
    args = parser.parse_args()
    args.lengths = [int(length) for length in args.lengths.split(",")]
    args.tasks, args.policies = args.tasks.split(","), args.policies.split(",")
    # float32 means float32 here: differences between policies must not be rounding.
    torch.backends.cuda.matmul.allow_tf32 = False
    cells: Cells = defaultdict(Cell)
    offsets: Offsets = defaultdict(list)
    begin, complete = time.monotonic(), False
    try:
        complete = measure(args, cells, offsets)
    finally:
        rows = [as_json(*key, cell) for key, cell in cells.items() if cell.hits]
        print_table(rows, args)
        print(f"\n{'complete' if complete else 'cut short'}, {time.monotonic() - begin:.0f} s")
        if args.json is not None:
            places = {f"{task}/{length}": found for (task, length), found in offsets.items() if found[0] >= 0}
            head = {**origin(args), "complete": complete, "seconds": round(time.monotonic() - begin, 1)}
            # One line for each cell: a reader and a diff see them side by side.
            body = ",\n".join(json.dumps(row) for row in rows)
            args.json.write_text(
                f'{json.dumps(head)[:-1]},\n"offsets": {json.dumps(places)},\n"cells": [\n{body}\n]}}\n'
            )


if __name__ == "__main__":
    main()
