# SPDX-License-Identifier: Apache-2.0
"""Drafts that are verified by decode graphs answer as eager forwards and as a server without them, at a real shape cut short."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eval.make_checkpoint import write
from eval.servers import alone, start
from redknot_sglang.errors import ServerError
from redknot_sglang.measure.launch import Server
from tests.serving import harness
from tests.serving.conversations import check_no_leak
from tests.serving.drafts import Shape, random_draft

pytestmark = [pytest.mark.gpu, pytest.mark.serving, pytest.mark.pinned]

LAYERS, ANSWER = 4, 64
FLAGS = (
    "--redknot",
    "--redknot-uncertified",
    "--skip-tokenizer-init",
    "--max-total-tokens=60000",
    # Three servers share the GPU, bounded by the tokens above.
    "--mem-fraction-static=0.8",
    "--context-length=12000",
    "--chunked-prefill-size=2048",
    "--cuda-graph-max-bs-decode=4",
    "--cuda-graph-backend-prefill=disabled",
    "--skip-server-warmup",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--enable-fp32-lm-head",
    "--random-seed=1",
)
DRAFTS = (
    "--speculative-algorithm=NGRAM",
    "--speculative-ngram-max-bfs-breadth=1",
    "--speculative-num-draft-tokens=8",
)
STEPS = 3
# bf16 rounds otherwise in another kernel; as in test_prefill_graphs.py.
TOLERANCE = 0.15


def prompts() -> list[list[int]]:
    """Shorter and longer than the window, and one that says the same again and again."""
    rng = random.Random("drafts")
    made = [[rng.randrange(300, 100_000) for _ in range(length)] for length in (5, 200, 3000, 9000)]
    return [*made, 300 * made[0]]


def answers(server: harness.Server) -> list[dict[str, Any]]:
    """Each prompt twice: the second time it is cached, and the first answer is what drafts are made of."""
    found = []
    for prompt in [*prompts(), *prompts()]:
        reply = server.generate(prompt, ANSWER, return_logprob=True)
        meta = reply["meta_info"]
        found.append(
            {
                "prompt": prompt,
                "tokens": reply["output_ids"],
                "logprobs": [entry[0] for entry in meta["output_token_logprobs"]],
                "per_step": meta.get("spec_accept_length", 1.0),
            }
        )
    check_no_leak(server)
    return found


def differences(server: harness.Server, found: list[dict[str, Any]]) -> list[float]:
    """By how much each chosen token's log-probability differs from a prefill of prompt and answer."""
    worst = []
    for one in found:
        start = len(one["prompt"]) - 1
        whole = one["prompt"] + one["tokens"]
        meta = server.generate(whole, 1, return_logprob=True, logprob_start_len=start)["meta_info"]
        read = [entry[0] for entry in meta["input_token_logprobs"]][1:]
        assert len(read) == len(one["logprobs"])
        worst.append(max(abs(a - b) for a, b in zip(read, one["logprobs"], strict=True)))
    return worst


def run_sides(
    path: str, model: Path, drafts: Sequence[str], logs: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Answers of a server with drafts and decode graphs, of one without graphs and of one without drafts, and of each the worst difference.

    They start together, which saves minutes, and whoever is not asked is stopped.
    """
    common = [
        f"--model-path={model}",
        f"--redknot-head-map={model}/one_of_eight.json",
        f"--redknot-attention={path}",
        *FLAGS,
    ]
    sides = {"graphs": drafts, "eager": (*drafts, "--disable-cuda-graph"), "plain": ()}
    runs, running = {}, dict[str, Server]()
    with ExitStack() as stack:
        for name, started in start(
            stack, {name: [*common, *flags] for name, flags in sides.items()}, {}, logs / "server"
        ).items():
            if isinstance(started, ServerError):
                raise started
            running[name] = started
        for name in sides:
            with alone(running, name) as one:
                server = harness.Server(one.url, one)
                runs[name] = answers(server)
                if name == "plain":
                    worst = {side: max(differences(server, runs[side])) for side in runs}
    lines = (logs / "server-graphs.log").read_text().splitlines()
    assert any("Decode batch" in line and "cuda graph: True" in line for line in lines), "the graphs were not used"
    return runs, worst


@pytest.mark.parametrize("path", ["fa3", "flashinfer", "triton"])
def test_drafts_answer_as_without(path: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write("qwen3-8b", LAYERS, model)
    runs, worst = run_sides(path, model, DRAFTS, tmp_path)
    for name, found in runs.items():
        print(name, f"worst {worst[name]:.4f}", [round(one["per_step"], 2) for one in found])
    assert max(worst.values()) < TOLERANCE
    half = len(prompts())
    for name in ("graphs", "eager"):
        # Of what was answered before; not of all, since random weights hardly prefer a token to the next and rows round differently.
        assert max(one["per_step"] for one in runs[name][half:]) > 2, "no draft was accepted"


@pytest.mark.parametrize("path", ["fa3", "flashinfer", "triton"])
@pytest.mark.parametrize("algorithm", ["EAGLE3", pytest.param("EAGLE", marks=pytest.mark.full)])
def test_a_draft_model_answers_as_without(algorithm: str, path: str, tmp_path: Path) -> None:
    """Of random weights: hardly any draft is accepted, and what its rows leave behind must not be seen."""
    model = tmp_path / "model"
    write("qwen3-8b", LAYERS, model)
    config = json.loads((model / "config.json").read_text())
    shape = Shape(
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        heads=16,
        kv_heads=4,
        layers_read=(0, 1, 2),
        dtype="bfloat16",
    )
    drafts = (
        f"--speculative-algorithm={algorithm}",
        f"--speculative-draft-model-path={random_draft(tmp_path / 'draft', algorithm, shape)}",
        f"--speculative-num-steps={STEPS}",
        "--speculative-eagle-topk=1",
        f"--speculative-num-draft-tokens={STEPS + 1}",
    )
    runs, worst = run_sides(path, model, drafts, tmp_path)
    for name, found in runs.items():
        print(name, f"worst {worst[name]:.4f}", [round(one["per_step"], 2) for one in found])
    assert max(worst.values()) < TOLERANCE
