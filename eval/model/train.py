# SPDX-License-Identifier: Apache-2.0
"""Train the embedded model: `python -m eval.model.train --out DIR` on a GPU, `--schedule toy` on a CPU.

Every step flips a coin: plain causal attention, or the head map's (local heads see sink + window). Both must
give the right answer, so the model is right under stock SGLang and under its map, and its head classes are
known.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import time
from dataclasses import asdict
from multiprocessing.pool import Pool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.train.attention import Layout, make_attention
from eval.train.checkpoint import export, load_weights
from eval.train.data import Batch, make_batch, training_rng
from eval.train.evaluate import exact_match, table
from eval.train.model import EmbeddedModel, ModelConfig, read_out, rope_table
from eval.train.optimizer import Optimizer
from eval.train.schedule import SCHEDULES, Schedule
from eval.train.supervision import Supervisor, rules_for

TOY = ModelConfig(
    width=128,
    layers=4,
    head_dim=32,
    ffn=256,
    window=32,
    global_heads=((1, 1), (1, 3), (2, 0), (2, 2), (3, 3)),
)
OTHER_TOKENS_WEIGHT = 0.1
SUPERVISION_WEIGHT = 0.5
GATE_TASK, GATE_LENGTH, GATE_EXACT_MATCH = "lookup", 512, 0.9


def produce(
    seed: int,
    worker: int,
    schedule: Schedule,
    tokens: int,
    window: int,
    progress: Synchronized[float],
    batches: mp.Queue[Batch],
) -> None:
    """Data worker: batches for the current progress, forever."""
    rng = training_rng(seed, worker)
    while True:
        batches.put(make_batch(rng, schedule.mix(progress.value), tokens, window))


def losses(
    c: ModelConfig, x: Tensor, norm: Tensor, embedding: Tensor, target: Tensor, counted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of counted rows and of the others, and the share of counted rows that are right."""
    logits = read_out(c, x, norm, embedding)
    each = F.cross_entropy(logits, target, reduction="none")
    right = (logits.argmax(-1) == target) * counted
    total = counted.sum().clamp(min=1)
    return (each * counted).sum() / total, (each * (1 - counted)).mean(), right.sum() / total


class Run:
    """One training run: its model, data and clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.schedule = SCHEDULES[args.schedule]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(args.seed)
        self.coin = torch.Generator().manual_seed(args.seed)
        self.config = TOY if args.schedule == "toy" else ModelConfig()
        self.model = EmbeddedModel(self.config).to(self.device)
        if args.init:
            load_weights(self.model, args.init / "model.safetensors")
        self.losses = losses
        if self.device.type == "cuda":
            self.model.compile_rows()
            self.losses = torch.compile(losses, dynamic=False, fullgraph=True)
        self.optimizer = Optimizer(self.model, args.matrix_rate, args.other_rate, decay=0.02)
        self.rules = rules_for(self.config)
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.log: list[dict[str, Any]] = []

    def step(self, batch: Batch, rate: float, supervision: float, momentum: float) -> tuple[str, Tensor]:
        """One update; returns the kind of batch and [answer loss, other loss, auxiliary loss, accuracy]."""
        tokens = self._moved(batch.tokens).long()
        counted = (self._moved(batch.kinds)[:, 1:] > 0).float().reshape(-1)
        length = tokens.shape[1] - 1
        layout = Layout(bool(torch.rand((), generator=self.coin) < 0.5), batch.split, batch.document)
        supervisor = Supervisor(self.config, self.rules, self._moved(batch.gold), length)
        attention = make_attention(self.config, layout, supervisor.observe if supervision else None)
        x = self.model(tokens[:, :-1], *self._tables(length), attention, self.dtype)
        answer, other, accuracy = self.losses(
            self.config, x, self.model.norm, self.model.embedding, tokens[:, 1:].reshape(-1), counted
        )
        auxiliary = supervisor.loss() if supervision else torch.zeros_like(answer)
        (answer + OTHER_TOKENS_WEIGHT * other + SUPERVISION_WEIGHT * supervision * auxiliary).backward()
        self.optimizer.step(rate, momentum)
        kind = f"{length}{' mapped' if layout.mapped else ''}{' isolated' if layout.split else ''}"
        return kind, torch.stack([answer.detach(), other.detach(), auxiliary.detach(), accuracy])

    def _moved(self, array: NDArray[Any]) -> Tensor:
        # A copy from pageable memory would wait for the GPU and let it idle meanwhile.
        host = torch.from_numpy(array)
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        if length not in self.tables:
            cos, sin = rope_table(self.config, length, self.device)
            rows = self.args.tokens // length
            self.tables[length] = cos.repeat(rows, 1), sin.repeat(rows, 1)
        return self.tables[length]

    def train(self, batches: mp.Queue[Batch], progress: Synchronized[float], pool: Pool) -> None:
        """Train for the time given; raises SystemExit where the gate is missed."""
        start, step, recent = time.monotonic(), 0, []
        gate, saved = self.args.gate, 0.0
        while (elapsed := time.monotonic() - start) < self.args.seconds:
            progress.value = done = elapsed / self.args.seconds
            rate, supervision = self.schedule.rate(done, step), self.schedule.supervision(done)
            recent.append(self.step(batches.get(), rate, supervision, min(0.95, 0.85 + step / 3000)))
            step += 1
            if step % self.args.report == 0:
                self._report(step, elapsed, rate, recent)
                recent = []
            if elapsed - saved > 60:
                export(self.model, self.args.out)
                saved = elapsed
            if gate and elapsed > gate:
                gate = 0.0
                self._check_gate(pool)
        print(f"trained {step} steps, {step * self.args.tokens / 1e6:.0f} M tokens", flush=True)

    def _report(self, step: int, elapsed: float, rate: float, recent: list[tuple[str, Tensor]]) -> None:
        kinds: dict[str, list[Tensor]] = {}
        for kind, values in recent:
            kinds.setdefault(kind, []).append(values)
        means = {k: [round(v, 3) for v in torch.stack(rows).mean(0).tolist()] for k, rows in sorted(kinds.items())}
        speed = step * self.args.tokens / elapsed / 1e6
        self.log.append({"step": step, "seconds": round(elapsed, 1), "rate": round(rate, 3), "kinds": means})
        print(f"{step} {elapsed:.0f}s {speed:.2f}M/s rate {rate:.2f} {means}", flush=True)

    def _check_gate(self, pool: Pool) -> None:
        reached = min(
            exact_match(self.evaluated(), GATE_TASK, GATE_LENGTH, range(128), mode, self.dtype, self.args.tokens, pool)
            for mode in ("dense", "mapped")
        )
        print(f"gate: {GATE_TASK} at {GATE_LENGTH} tokens: {reached:.3f}", flush=True)
        if reached < GATE_EXACT_MATCH:
            self.save({"gate": reached})
            raise SystemExit(f"gate missed: needs {GATE_EXACT_MATCH}")

    def evaluated(self) -> EmbeddedModel:
        """A copy with the weights as they are served, bfloat16, and uncompiled rows for any batch size."""
        copy = EmbeddedModel(self.config).to(self.device)
        copy.load_state_dict({k: v.bfloat16().float() for k, v in self.model.state_dict().items()})
        return copy

    def save(self, result: dict[str, Any]) -> None:
        """Write the model folder and `run.json`: settings, exact match by mode, length and task, log."""
        export(self.model, self.args.out)
        settings = {k: str(v) for k, v in vars(self.args).items() if k not in ("out", "init")}
        content = {
            "settings": settings,
            "config": asdict(self.config),
            "exact_match": result,
            "log": self.log,
        }
        (self.args.out / "run.json").write_text(json.dumps(content, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the log")
    parser.add_argument("--init", type=Path, help="model folder to start from")
    parser.add_argument("--schedule", choices=SCHEDULES, default="start")
    parser.add_argument("--seconds", type=float, default=330, help="training time; 0 only evaluates --init")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens per step")
    parser.add_argument("--workers", type=int, default=12, help="data processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--matrix-rate", type=float, default=0.004, help="Muon learning rate of the matrices")
    parser.add_argument("--other-rate", type=float, default=0.003, help="AdamW learning rate of embedding and norms")
    parser.add_argument("--gate", type=float, default=0, help="seconds after which lookup must work; 0 for no gate")
    parser.add_argument("--report", type=int, default=200, help="steps between progress lines")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 4096], help="evaluation lengths")
    parser.add_argument("--count", type=int, default=400, help="evaluation examples per task and length")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, and write everything to the output folder."""
    args = parse()
    context = mp.get_context("fork")
    with context.Pool(args.workers) as pool:  # forked before CUDA starts
        progress: Synchronized[float] = context.Value("d", 0.0)
        batches: mp.Queue[Batch] = context.Queue(maxsize=32)
        schedule, window = SCHEDULES[args.schedule], (TOY if args.schedule == "toy" else ModelConfig()).window
        for worker in range(args.workers):
            context.Process(
                target=produce,
                args=(args.seed, worker, schedule, args.tokens, window, progress, batches),
                daemon=True,
            ).start()
        run = Run(args)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            run.train(batches, progress, pool)
            run.save({})
            result = table(run.evaluated(), args.lengths, args.count, ("dense", "mapped"), run.dtype, args.tokens, pool)
            run.save(result)
        print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
