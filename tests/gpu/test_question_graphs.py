# SPDX-License-Identifier: Apache-2.0
"""Both forwards of the repair policy `question` as graphs that hold the attention: same choices and answers as eagerly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.make_checkpoint import write
from redknot_sglang.heads import load_head_map
from redknot_sglang.measure.launch import launch
from tests.serving import harness
from tests.serving.conversations import check_no_leak

pytestmark = [pytest.mark.gpu, pytest.mark.serving]

LAYERS = 4
# Query heads of the layers' only global KV head. The last layer has none, so that a question's forward ends before it.
RETRIEVAL = ((0, 1), (1, 0), (2, 3))
DOCUMENTS, SIZE = 12, 600
FLAGS = (
    "--redknot",
    "--redknot-uncertified",
    "--redknot-mode=segmented",
    "--redknot-repair=question:2",
    f"--redknot-segment-length={SIZE}",
    "--skip-tokenizer-init",
    "--max-total-tokens=60000",
    "--context-length=12000",
    "--chunked-prefill-size=2048",
    "--cuda-graph-max-bs-decode=4",
    "--skip-server-warmup",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--enable-fp32-lm-head",
    "--random-seed=1",
)
GRAPHS = ("--cuda-graph-bs-prefill", "32", "64", "640", "768", "2048")


@dataclass(frozen=True)
class Told:
    """An answer. values: log-probabilities of the tokens asked about. ran: prefill forwards that it took, as status counts them."""

    token: int
    values: list[float]
    chosen: list[int]
    cached: int
    ran: dict[str, Any]


def answers(server: harness.Server) -> list[Told]:
    rng = random.Random("question graphs")

    def noise(count: int) -> list[int]:
        return [rng.randrange(300, 100_000) for _ in range(count)]

    # A document is one word over and over, and so is a question: attention then tells documents apart by far more than rounding.
    documents = [noise(1) * SIZE for _ in range(DOCUMENTS)]
    lead, asked = noise(30), noise(50)
    found = []

    def ask(order: Sequence[int], question: list[int]) -> None:
        ids, offsets = list(lead), list[int]()
        for document in order:
            offsets += [len(ids), len(ids) + SIZE]
            ids += documents[document]
        params = {"redknot_segments": offsets, "redknot_repair": "question:2"}
        before = server.get("/redknot/status")["prefill_forwards"]
        reply = server.generate(
            ids + question, 1, sampling_params={"custom_params": params}, return_logprob=True, token_ids_logprob=asked
        )
        after = server.get("/redknot/status")["prefill_forwards"]
        meta = reply["meta_info"]
        values = [row[0] for row in meta["output_token_ids_logprobs"][0]]
        chosen = [order[number] for number in meta["redknot"]["chosen_segments"]]
        ran = {kind: after[kind] for kind in after if after[kind] != before[kind]}
        found.append(Told(reply["output_ids"][0], values, chosen, meta["redknot"]["cached_tokens"], ran))

    ask(range(DOCUMENTS), noise(1) * 40)
    for rows in (20, 31, 32, 45, 60, 64):
        ask(rng.sample(range(DOCUMENTS), DOCUMENTS), noise(1) * rows)
    check_no_leak(server)
    return found


def test_both_forwards_of_a_question_run_as_graphs_and_answer_as_eager_ones(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("graphs that hold the attention need path fa3, which is for Hopper")
    model = tmp_path / "model"
    write("qwen3-8b", LAYERS, model)
    head_map = tmp_path / "retrieval.json"
    replace(load_head_map(model / "one_of_eight.json"), retrieval=RETRIEVAL).save(head_map)
    common = [f"--model-path={model}", f"--redknot-head-map={head_map}", *FLAGS]
    sides = {"eager": ("--cuda-graph-backend-prefill=disabled",), "graphs": GRAPHS}

    def run(name: str) -> list[Told]:
        with launch([*common, *sides[name]], tmp_path / f"{name}.log", timeout=500) as running:
            return answers(harness.Server(running.url, running))

    with ThreadPoolExecutor(len(sides)) as pool:
        runs = dict(zip(sides, pool.map(run, sides), strict=True))
    worst = 0.0
    for eager, graph in zip(runs["eager"], runs["graphs"], strict=True):
        assert set(eager.ran) <= {"eager", "choosing"}
        assert (graph.chosen, graph.cached) == (eager.chosen, eager.cached)
        worst = max(worst, *(abs(a - b) for a, b in zip(eager.values, graph.values, strict=True)))
    print(f"largest difference of a log-probability: {worst:.4f}")
    assert worst < 0.15
    # Once its documents are cached, a request is the question's forward and that of what is left, each one launch.
    counts = [graph.ran["whole_graph"] for graph in runs["graphs"]]
    assert [after - before for before, after in zip(counts[:-1], counts[1:], strict=True)] == [2] * (len(counts) - 1)
    assert all(list(graph.ran) == ["whole_graph", "choosing"] for graph in runs["graphs"][1:])
    # That of the question ends at the deepest retrieval head, with a graph of its own.
    for told in runs.values():
        ended = [one.ran.get("choosing", 0) for one in told]
        assert [after - before for before, after in zip(ended[:-1], ended[1:], strict=True)] == [1] * (len(ended) - 1)
