# SPDX-License-Identifier: Apache-2.0
"""Two tensor-parallel ranks answer as one does, choose the same rows and documents, hold twice as much, and report
the sums of both.

The map's global heads would all be on the first rank, so they are dealt out.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from safetensors.torch import load_file, save_file

from redknot_sglang.heads import HeadMap
from tests.serving import harness
from tests.serving.answers import Answer, agree, ask, ask_again
from tests.serving.conversations import check_no_leak, make_conversations, play_all
from tests.serving.definition import Definition
from tests.serving.harness import Server
from tests.serving.maps import ALONE, RETRIEVAL_OF_LOPSIDED, lopsided_map
from tests.serving.prompts import noise
from tests.serving.ranks import TWO_RANKS, needs_two
from tests.serving.segmented import SegmentedRequest, ask_all_segmented, ask_segmented, kept, make_choosing_requests

pytestmark = [pytest.mark.serving, needs_two]

ANSWER = 6
TOLERANCE = 1e-4
# Bytes for KV on each rank.
BUDGET = 64 << 20
# A few requests, so that the tree has to evict, by the policy whose ranks are made from what computing costs.
FLAGS = (
    "--redknot",
    "--redknot-segment-length=100",
    "--chunked-prefill-size=128",
    "--max-total-tokens=4000",
    "--radix-eviction-policy=redknot",
    "--enable-metrics",
)


def make_requests() -> list[SegmentedRequest | list[int]]:
    """Prompts of exact mode, and segmented ones over a few documents under each policy."""
    rng = random.Random("two ranks")
    documents, lead = [noise(rng, length) for length in (30, 90, 150, 200)], noise(rng, 20)
    found: list[SegmentedRequest | list[int]] = [lead + noise(rng, 300), documents[3] + noise(rng, 150)]
    for policy in ("none", "boundary:16", "blend:0.1", "blend:0.3", "question:1", "question:2"):
        for _ in range(2):
            prompt, offsets = list(lead), list[int]()
            for document in rng.sample(documents, 3):
                offsets += [len(prompt), len(prompt) + len(document)]
                prompt += document
            found.append(SegmentedRequest(prompt + noise(rng, 40), offsets, policy))
    return found


def answered(server: Server, request: SegmentedRequest | list[int]) -> tuple[Answer, dict[str, Any]]:
    if isinstance(request, SegmentedRequest):
        return ask_segmented(server, request, ANSWER)
    body = server.generate(request, 1)
    return ask(server, request, ANSWER), body["meta_info"]["redknot"]


def metrics(server: Server) -> list[str]:
    text = requests.get(server.url + "/metrics", timeout=harness.REQUEST_TIMEOUT).text
    # A label is listed from when it is first counted.
    return sorted(line for line in text.splitlines() if line.startswith("redknot:"))


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same map with retrieval heads of both ranks, and of one only."""
    paths = tmp_path_factory.mktemp("both") / "map.json", tmp_path_factory.mktemp("alone") / "map.json"
    for path, retrieval in zip(paths, (RETRIEVAL_OF_LOPSIDED, ALONE), strict=True):
        lopsided_map(retrieval).save(path)
    return paths


@pytest.fixture(scope="module")
def two(maps: tuple[Path, Path]) -> Iterator[Server]:
    with harness.launch([*FLAGS, f"--redknot-head-map={maps[0]}", "--tp-size=2"], TWO_RANKS) as running:
        yield running
        check_no_leak(running)


@pytest.fixture(scope="module")
def one(maps: tuple[Path, Path]) -> Iterator[Server]:
    with harness.launch([*FLAGS, f"--redknot-head-map={maps[0]}"]) as running:
        yield running


def test_answers_choices_reports_status_and_metrics_are_those_of_one_rank(one: Server, two: Server) -> None:
    """Cold, then warm under eviction. What is reported is the same because it is the sum over the ranks."""
    sent = make_requests()
    for request in [*sent, *sent]:
        (reference, expected), (answer, report) = answered(one, request), answered(two, request)
        agree(answer, reference, TOLERANCE)
        assert report == expected
        assert report["flops"] > 0 and report["kv_bytes"] > 0
    for server in (one, two):
        check_no_leak(server)
    status, expected = two.get("/redknot/status"), one.get("/redknot/status")
    ranks = status.pop("ranks")
    assert expected.pop("ranks") is None
    assert status == expected and status["head_map"]["kv_heads"] == 4
    assert ranks["dealt"] and ranks["why_not"] is None and ranks["global_heads"] == [3, 3]
    assert [sorted(a + b) for a, b in zip(*ranks["kv_heads"], strict=True)] == [[0, 1, 2, 3]] * 6
    assert "2 ranks hold 3, 3 global heads; in the checkpoint's order one would hold 6" in two.log_text()
    shown = metrics(two)
    assert [line for line in shown if "rank_global_heads" in line] == [
        f'redknot:rank_global_heads{{rank="{rank}"}} 3.0' for rank in range(2)
    ]
    of_all = [line for line in shown if "rank_global_heads" not in line]
    assert of_all == [line for line in metrics(one) if "rank_global_heads" not in line]
    assert any('segment_flops_total{kind="isolated"}' in line and not line.endswith(" 0.0") for line in shown)


def test_ranks_decide_alike_in_batches(one: Server, two: Server) -> None:
    """Ranks that chose other documents, or evicted other nodes, would stop each other or answer wrongly."""
    sent = make_choosing_requests(random.Random("in batches"), 8, longest=300, limit=1200)
    expected = ask_all_segmented(one, sent, ANSWER, at_once=1)
    for found in (ask_all_segmented(two, sent, ANSWER, at_once=8), ask_all_segmented(two, sent, ANSWER, at_once=3)):
        for (answer, report), (reference, first) in zip(found, expected, strict=True):
            agree(answer, reference, TOLERANCE)
            assert report["chosen_segments"] == first["chosen_segments"]
    check_no_leak(two)


def test_conversations_under_eviction_with_clients_that_leave(one: Server, two: Server, full: bool) -> None:
    """From caches that hold what each conversation left there, which is not the same on both servers."""
    answers = play_all(two, make_conversations(seed=23, count=60 if full else 12), at_once=6)
    check_no_leak(two)
    for answer, reference in zip(answers, ask_again(one, answers, at_once=6), strict=True):
        agree(answer, reference, TOLERANCE)
    assert sum(answer.cached for answer in answers) > 0


def test_a_rank_without_retrieval_heads_takes_part(one: Server, maps: tuple[Path, Path]) -> None:
    """The choice is the definition's, and the answer that of one rank to what is left, for which retrieval heads do
    not matter.

    One retrieval head is on one of the ranks.
    """
    sent = make_choosing_requests(random.Random("without"), 6, longest=300, limit=1200)
    definition, decided = Definition(ALONE, lopsided_map(ALONE)), 0
    with harness.launch([*FLAGS, f"--redknot-head-map={maps[1]}", "--tp-size=2"], TWO_RANKS) as server:
        for request, (answer, report) in zip(sent, ask_all_segmented(server, sent, ANSWER, at_once=3), strict=True):
            wanted, lead = definition.chosen(request)
            if lead > TOLERANCE:
                assert set(report["chosen_segments"]) == wanted
                decided += 1
            rest = ask(one, kept(request, report), ANSWER)
            assert answer.tokens == rest.tokens
            assert answer.logprobs == pytest.approx(rest.logprobs, abs=TOLERANCE)
        check_no_leak(server)
    assert decided > len(sent) // 2


def test_an_update_that_fails_halfway_is_said_until_a_whole_checkpoint_comes(two: Server, tmp_path: Path) -> None:
    """The last layer's weights are packed, and cannot be dealt out. What was cached before is of other weights."""
    folder, prompt = tmp_path / "model", noise(random.Random("halfway"), 200)
    shutil.copytree(harness.MODEL, folder, ignore=shutil.ignore_patterns("*certificate*"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.5.self_attn.q_proj."
    weights[name + "qweight"] = weights.pop(name + "weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    two.generate(prompt, 1)
    response = two.post("/update_weights_from_disk", {"model_path": str(folder)})
    assert response.status_code == 400 and "is no weight of attention as it is known" in response.text
    state = two.get("/redknot/status")["certificate"]
    assert state["weights"] == "unknown" and not state["certified"] and "load a whole checkpoint" in state["reason"]
    report = two.generate(prompt, 1)["meta_info"]["redknot"]
    assert (report["weights"], report["certified"], report["cached_tokens"]) == ("unknown", False, 0)
    two.post("/update_weights_from_disk", {"model_path": str(harness.MODEL)}).raise_for_status()
    report = two.generate(prompt, 1)["meta_info"]["redknot"]
    assert (report["weights"], report["cached_tokens"]) == ("updated", 0)
    assert two.get("/redknot/status")["certificate"]["weights"] == "updated"


def test_weights_that_are_loaded_again_are_dealt_out_again(one: Server, two: Server) -> None:
    """Last of those that share these servers: after an update nothing is certified."""
    sent = [request for request in make_requests() if isinstance(request, list) or request.policy.startswith("blend")]
    expected = [answered(one, request) for request in sent]
    for load_format, status in (("sharded_state", 400), ("safetensors", 200)):
        response = two.post("/update_weights_from_disk", {"model_path": str(harness.MODEL), "load_format": load_format})
        assert response.status_code == status, response.text
    # The prefix cache went with the old weights.
    for request, (reference, report) in zip(sent, expected, strict=True):
        answer, found = answered(two, request)
        agree(answer, reference, TOLERANCE)
        assert found.get("repaired_tokens") == report.get("repaired_tokens")
    shown = two.post("/get_weights_by_name", {"name": "model.layers.1.self_attn.q_proj.weight"})
    assert shown.status_code == 400 and "cannot be shown" in two.log_text()
    check_no_leak(two)


def test_two_ranks_hold_twice_the_tokens_in_the_same_memory_each(tmp_path: Path) -> None:
    """One of eight heads of each layer is global, and always the first: the second rank would have none."""
    path = tmp_path / "map.json"
    HeadMap.from_global_heads(6, 8, tuple((layer, 0) for layer in range(6)), 128, 4).save(path)
    flags = [flag for flag in harness.FLAGS if not flag.startswith("--max-total-tokens")]
    args = [
        "--redknot",
        f"--redknot-head-map={path}",
        f"--redknot-kv-budget={BUDGET}",
        "--load-format=dummy",
        '--json-model-override-args={"num_key_value_heads": 8}',
    ]
    held = []
    for ranks, env in ((1, None), (2, TWO_RANKS)):
        with harness.launch([*args, f"--tp-size={ranks}"], env, base=flags) as server:
            server.generate(list(range(5, 300)), 4)
            check_no_leak(server)
            classes = server.get("/redknot/status")["classes"].values()
            # Bytes of a slot are those of all ranks.
            taken = sum(of["slots"] * of["bytes_per_slot"] for of in classes) / ranks
            assert 0.98 * BUDGET < taken <= BUDGET
            held.append(server.get("/redknot/status")["classes"]["global"]["slots"])
    assert held[1] >= 1.95 * held[0]
