# SPDX-License-Identifier: Apache-2.0
"""Two ranks on two GPUs answer as one, under every policy, and all-global as stock SGLang; a real shape cut short."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from eval.make_checkpoint import write
from redknot_sglang.heads import load_head_map
from redknot_sglang.measure.launch import launch
from tests.serving import harness
from tests.serving.conversations import check_no_leak

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.serving,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two ranks need two GPUs"),
]

LAYERS = 4
# Query heads of the layers' only global KV head.
RETRIEVAL = ((1, 0), (2, 3), (3, 1))
DOCUMENTS, SIZE, TAIL = 12, 600, 50
POLICIES = ("none", "boundary:16", "blend:0.05", "question:2")
COMMON = (
    "--skip-tokenizer-init",
    "--max-total-tokens=60000",
    "--context-length=12000",
    "--chunked-prefill-size=2048",
    "--cuda-graph-max-bs-decode=4",
    "--cuda-graph-backend-prefill=disabled",
    # Servers that share a GPU are bounded by the tokens above; a small fraction would count what the others have taken as missing.
    "--mem-fraction-static=0.8",
    "--skip-server-warmup",
    "--grammar-backend=none",
    "--sampling-backend=pytorch",
    "--enable-fp32-lm-head",
    "--random-seed=1",
)
SEGMENTED = (
    "--redknot",
    "--redknot-uncertified",
    "--redknot-mode=segmented",
    # Probes of rows, which `blend` needs, are kept where the default policy is a blend.
    "--redknot-repair=blend:0.05",
    f"--redknot-segment-length={SIZE}",
)
# bf16 sums over two ranks in another order; as in test_prefill_graphs.py.
TOLERANCE = 0.15


@dataclass(frozen=True)
class Told:
    """An answer. values: log-probabilities of the tokens asked about. report: what was chosen and computed, None of stock."""

    values: list[float]
    report: tuple[list[int], int, int] | None


class Asker:
    """Asks a server for one token of each prompt, with the log-probabilities of the same 50."""

    def __init__(self, server: harness.Server) -> None:
        self._server = server
        rng = random.Random("asked about")
        self._asked = [rng.randrange(300, 100_000) for _ in range(50)]

    def ask(self, ids: list[int], params: dict[str, object] | None) -> Told:
        """The answer to a prompt with these custom parameters, None for stock."""
        reply = self._server.generate(
            ids, 1, sampling_params={"custom_params": params}, return_logprob=True, token_ids_logprob=self._asked
        )
        meta = reply["meta_info"]
        found = meta.get("redknot")
        report = (found.get("chosen_segments", []), found["cached_tokens"], found["computed_rows"]) if found else None
        return Told([row[0] for row in meta["output_token_ids_logprobs"][0]], report)


def segmented_answers(server: harness.Server) -> list[Told]:
    """Documents in changing orders under each policy: the first time computed, then from the cache."""
    rng, asker, found = random.Random("documents"), Asker(server), list[Told]()
    # A document is one word over and over, and so is a question: attention then tells documents apart by far more than rounding.
    documents = [[rng.randrange(300, 100_000)] * SIZE for _ in range(DOCUMENTS)]
    lead = [rng.randrange(300, 100_000) for _ in range(30)]
    for policy in POLICIES:
        for _ in range(3):
            ids, offsets = list(lead), list[int]()
            for document in rng.sample(documents, DOCUMENTS):
                offsets += [len(ids), len(ids) + SIZE]
                ids += document
            question = [rng.randrange(300, 100_000)] * TAIL
            found.append(asker.ask(ids + question, {"redknot_segments": offsets, "redknot_repair": policy}))
    check_no_leak(server)
    return found


def prompt_answers(server: harness.Server) -> list[Told]:
    """Plain prompts, cold and behind a cached prefix; nothing of them is RedKnot's, so that stock is asked the same."""
    rng, asker = random.Random("prompts"), Asker(server)
    base = [rng.randrange(300, 100_000) for _ in range(9000)]
    return [asker.ask(base[:length], None) for length in (5, 200, 3000, 3040, 9000)]


def apart(some: list[Told], others: list[Told]) -> float:
    """The largest difference of a log-probability."""
    return max(abs(a - b) for x, y in zip(some, others, strict=True) for a, b in zip(x.values, y.values, strict=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "model"
    write("qwen3-8b", LAYERS, folder)
    replace(load_head_map(folder / "one_of_eight.json"), retrieval=RETRIEVAL).save(folder / "retrieval.json")
    return folder


Play = Callable[[harness.Server], list[Told]]


def played(model: Path, sides: dict[str, tuple[str, ...]], play: Play, logs: Path) -> dict[str, list[Told]]:
    """What each server answers, all of them at the same time. sides: flags of each server, by name."""

    def run(name: str) -> list[Told]:
        flags = [f"--model-path={model}", *COMMON, *sides[name]]
        with launch(flags, logs / f"{name}.log", timeout=500) as running:
            return play(harness.Server(running.url, running))

    with ThreadPoolExecutor(len(sides)) as pool:
        return dict(zip(sides, pool.map(run, sides), strict=True))


def test_every_policy_answers_as_on_one_rank(model: Path, tmp_path: Path) -> None:
    flags = (*SEGMENTED, f"--redknot-head-map={model}/retrieval.json")
    runs = played(model, {"one": flags, "two": (*flags, "--tp-size=2")}, segmented_answers, tmp_path)
    print(f"largest difference of a log-probability: {apart(runs['one'], runs['two']):.4f}")
    assert [told.report for told in runs["two"]] == [told.report for told in runs["one"]]
    assert all(len(told.report[0]) == 2 for told in runs["two"][-3:] if told.report)
    assert apart(runs["one"], runs["two"]) < TOLERANCE
    spread = max(told.values[0] for told in runs["one"]) - min(told.values[0] for told in runs["one"])
    assert spread > 2 * TOLERANCE, "answers that do not differ from one another show nothing"


def test_all_global_equals_stock_on_two_ranks(model: Path, tmp_path: Path) -> None:
    ours = ("--redknot", "--redknot-uncertified", f"--redknot-head-map={model}/all_global.json", "--tp-size=2")
    stock = ("--attention-backend=fa3", "--tp-size=2")
    runs = played(model, {"stock": stock, "redknot": ours}, prompt_answers, tmp_path)
    print(f"largest difference of a log-probability: {apart(runs['stock'], runs['redknot']):.4f}")
    assert all(told.report is None for told in runs["stock"]) and all(told.report for told in runs["redknot"])
    assert apart(runs["stock"], runs["redknot"]) < TOLERANCE
