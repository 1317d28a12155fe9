# SPDX-License-Identifier: Apache-2.0
"""Prefill graphs, those that hold the attention included, answer as eager forwards do; on Hopper, a real shape cut short."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.make_checkpoint import write
from redknot_sglang.measure.launch import launch
from tests.serving import harness
from tests.serving.conversations import check_no_leak

pytestmark = [pytest.mark.gpu, pytest.mark.serving]

LAYERS = 4
FLAGS = (
    "--redknot",
    "--redknot-uncertified",
    "--redknot-mode=segmented",
    "--redknot-repair=blend:0.08",
    "--skip-tokenizer-init",
    "--max-total-tokens=40000",
    "--context-length=12000",
    "--chunked-prefill-size=2048",
    "--cuda-graph-max-bs-decode=4",
    "--skip-server-warmup",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--enable-fp32-lm-head",
    "--random-seed=1",
)
GRAPHS = ("--cuda-graph-bs-prefill", "64", "256", "640", "2048")


def answers(server: harness.Server) -> list[tuple[int, list[float], Any]]:
    """First token, log-probabilities of the tokens asked about, and what was reused, request by request."""
    rng = random.Random("graphs")
    documents = [[rng.randrange(300, 100_000) for _ in range(600)] for _ in range(6)]
    probes = [rng.randrange(300, 100_000) for _ in range(50)]
    found = []

    def ask(ids: list[int], offsets: list[int] | None, policy: str = "none") -> None:
        params = (
            {"redknot_mode": "exact"} if offsets is None else {"redknot_segments": offsets, "redknot_repair": policy}
        )
        reply = server.generate(
            ids, 1, sampling_params={"custom_params": params}, return_logprob=True, token_ids_logprob=probes
        )
        meta = reply["meta_info"]
        values = [row[0] for row in meta["output_token_ids_logprobs"][0]]
        found.append((reply["output_ids"][0], values, meta["redknot"]["computed_tokens"]))

    base = [rng.randrange(300, 100_000) for _ in range(5000)]
    for rows in (3000, 40, 300, 1500):
        # Longer each time, so that each is a prefix hit of the one before but for its last rows.
        ask(base[: 2000 + rows], None)
    for policy in ("none", "boundary:16", "boundary:100", "blend:0.05"):
        for _ in range(3):
            order = rng.sample(range(6), 5)
            ids, offsets = base[:30], list[int]()
            for document in order:
                offsets += [len(ids), len(ids) + 600]
                ids = ids + documents[document]
            ask([*ids, *base[:70]], offsets, policy)
    check_no_leak(server)
    return found


def test_graphs_answer_as_eager_forwards(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("graphs that hold the attention need path fa3, which is for Hopper")
    model = tmp_path / "model"
    write("qwen3-8b", LAYERS, model)
    common = [f"--model-path={model}", f"--redknot-head-map={model}/one_of_eight.json", *FLAGS]
    sides = {"eager": ("--cuda-graph-backend-prefill=disabled",), "graphs": GRAPHS}

    def run(name: str) -> list[tuple[int, list[float], Any]]:
        with launch([*common, *sides[name]], tmp_path / f"{name}.log", timeout=500) as running:
            return answers(harness.Server(running.url, running))

    with ThreadPoolExecutor(len(sides)) as pool:
        runs = dict(zip(sides, pool.map(run, sides), strict=True))
    for name in sides:
        lines = (tmp_path / f"{name}.log").read_text().splitlines()
        used = [line for line in lines if "Prefill batch" in line and "cuda graph: True" in line]
        assert bool(used) == (name == "graphs"), "the graphs were not used"
    worst = 0.0
    for eager, graph in zip(runs["eager"], runs["graphs"], strict=True):
        assert eager[2] == graph[2]
        worst = max(worst, *(abs(a - b) for a, b in zip(eager[1], graph[1], strict=True)))
    print(f"largest difference of a log-probability: {worst:.4f}")
    assert worst < 0.15
