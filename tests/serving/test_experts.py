# SPDX-License-Identifier: Apache-2.0
"""A model with experts (Qwen3-MoE, of random weights): as stock SGLang serves it, in both modes, and its operations counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch

from redknot_sglang.heads import HeadMap
from tests.serving import harness
from tests.serving.answers import agree, ask, ask_all
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.prompts import mixed, noise
from tests.serving.segmented import SegmentedRequest, ask_segmented

pytestmark = pytest.mark.serving

LAYERS, KV_HEADS, HEAD_DIM, HIDDEN = 3, 2, 64, 128
EXPERTS, CHOSEN, WIDTH = 8, 2, 64
GLOBAL, RETRIEVAL = ((0, 0), (1, 1)), ((1, 2),)
WINDOW, SINK = 64, 4
ANSWER, AT_ONCE, TOLERANCE = 8, 4, 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts in every layer, as in all published models of this class; SGLang does not read `mlp_only_layers` of it."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("experts")
    sizes: Any = {"head_dim": HEAD_DIM}
    config = Qwen3MoeConfig(
        **sizes,
        vocab_size=2048,
        hidden_size=HIDDEN,
        moe_intermediate_size=WIDTH,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=True,
        num_hidden_layers=LAYERS,
        num_attention_heads=2 * KV_HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=8448,
        # Large weights, so that attention is sharp and a wrong row would be seen.
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        copy(harness.MODEL / name, folder)
    return folder


def serve(model: Path, *flags: str) -> list[str]:
    return [f"--model-path={model}", "--max-total-tokens=12000", "--chunked-prefill-size=256", *flags]


def with_map(model: Path, name: str, heads: tuple[tuple[int, int], ...]) -> list[str]:
    path = model / f"{name}.json"
    replace(HeadMap.from_global_heads(LAYERS, KV_HEADS, heads, WINDOW, SINK), retrieval=RETRIEVAL).save(path)
    return serve(model, "--redknot", f"--redknot-head-map={path}", "--redknot-segment-length=300")


@pytest.fixture(scope="module")
def local(model: Path) -> Iterator[Server]:
    with harness.launch(with_map(model, "local", GLOBAL)) as server:
        yield server


def test_with_all_heads_global_it_equals_stock(model: Path) -> None:
    rng = random.Random("experts")
    prompts = [mixed(rng, length) for length in (3, 200, 500, 900)]
    everything = tuple((layer, head) for layer in range(LAYERS) for head in range(KV_HEADS))
    with harness.launch(serve(model)) as stock, harness.launch(with_map(model, "all_global", everything)) as server:
        for answer, reference in zip(
            ask_all(server, prompts, ANSWER, AT_ONCE), ask_all(stock, prompts, ANSWER, AT_ONCE), strict=True
        ):
            agree(answer, reference, TOLERANCE)
        check_no_leak(server)


def test_a_hit_never_changes_an_answer(local: Server) -> None:
    rng = random.Random("exact")
    prompts = [mixed(rng, length) for length in (100, 400, 900)]
    cold = ask_all(local, prompts, ANSWER, AT_ONCE)
    longer = [answer.prompt + answer.tokens + noise(rng, 50) for answer in cold]
    warm = [*ask_all(local, prompts, ANSWER, AT_ONCE), *ask_all(local, longer, ANSWER, AT_ONCE)]
    assert all(answer.cached >= len(answer.prompt) - 60 for answer in warm)
    local.flush()
    for answer, reference in zip(warm, [*cold, *ask_all(local, longer, ANSWER, 1)], strict=True):
        agree(answer, reference, TOLERANCE)
    check_no_leak(local)


@pytest.mark.parametrize("policy", ["none", "boundary:16", "blend:0.15", "question:1"])
def test_a_cached_document_never_changes_an_answer(local: Server, policy: str) -> None:
    rng = random.Random(policy)
    documents = [noise(rng, length) for length in (200, 90, 300)]
    sent = []
    for order in ((0, 1, 2), (2, 0, 1)):
        prompt, offsets = noise(rng, 20), list[int]()
        for number in order:
            offsets += [len(prompt), len(prompt) + len(documents[number])]
            prompt = [*prompt, *documents[number]]
        sent.append(SegmentedRequest([*prompt, *noise(rng, 30)], offsets, policy))
    cold = []
    for request in sent:
        local.flush()
        cold.append(ask_segmented(local, request, ANSWER)[0])
    warm = [ask_segmented(local, request, ANSWER)[0] for request in sent]
    for answer, reference in zip(warm, cold, strict=True):
        agree(answer, reference, TOLERANCE)
    assert warm[1].cached > 0
    check_no_leak(local)


def test_rows_are_counted_through_their_own_experts_only(local: Server) -> None:
    local.flush()
    length = 300
    request = SegmentedRequest(noise(random.Random("rows"), length), [20, 200], "none")
    _, report = ask_segmented(local, request, 1)
    attention = HIDDEN * HEAD_DIM * (2 * 2 * KV_HEADS + 2 * KV_HEADS)
    row = 2 * LAYERS * (attention + HIDDEN * (EXPERTS + 3 * CHOSEN * WIDTH))
    # The document was computed alone, before this request, which reuses it.
    rows = [*range(20), *range(200, length)]
    far = sum(at + 1 for at in rows)
    near = sum(min(at + 1, WINDOW + SINK) for at in rows)
    # Two query heads for each KV head; scores and sums of values are two operations each.
    heads = {"far": 2 * len(GLOBAL), "near": 2 * (LAYERS * KV_HEADS - len(GLOBAL))}
    pairs = 4 * HEAD_DIM * (heads["far"] * far + heads["near"] * near)
    assert (report["computed_rows"], report["flops"]) == (len(rows), row * len(rows) + pairs)


def test_it_answers_a_question_alone_and_in_a_batch_alike(local: Server) -> None:
    """Which experts a row goes through is its own business."""
    rng = random.Random("batch")
    prompts = [mixed(rng, 150) for _ in range(AT_ONCE)]
    together = ask_all(local, prompts, ANSWER, AT_ONCE)
    local.flush()
    for answer in together:
        agree(answer, ask(local, answer.prompt, ANSWER), TOLERANCE)
