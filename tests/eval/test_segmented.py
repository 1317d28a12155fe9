# SPDX-License-Identifier: Apache-2.0
"""eval/segmented.py against a brute-force version of its definition, and against what must hold by definition."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval import bench_repair, segmented
from eval.bench_repair import make_prompt
from eval.repair_rows import UNCHANGED
from eval.segmented import SegmentedModel
from eval.tasks import TASKS, make_example
from eval.tasks.vocabulary import END, decode, token_id
from tests.serving.oracle import OracleModel, _rotate

MODEL = Path(__file__).parents[2] / "eval" / "model"
SHIPPED = json.loads((MODEL / "head_map.json").read_text())
# So narrow that short prompts have rows on both sides of it.
NARROW = {**SHIPPED, "local": {"window": 7, "sink": 2}}
ALL_GLOBAL = {"layers": ["GGGG"] * 6}
PROMPT = random.Random(7).choices(range(300, 1500), k=70)
SEGMENTS = [(5, 25), (25, 40), (43, 63)]
ANSWER = [400, 500, 600]


class BruteForce(OracleModel):
    """Segmented mode row by row: K is kept unrotated and turned by its true position, a loop over rows and heads."""

    def segmented(self, rows: Sequence[int], lead: bool, heads_only: bool = False) -> Tensor:
        """Log-probabilities after the prompt and each answer token, when `rows` of the segments are repaired."""
        ids = PROMPT + ANSWER
        before = SEGMENTS[0][0] if lead else 0
        kept: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        for a, b in SEGMENTS:
            alone = ids[:before] + ids[a:b]
            _, made = self.run(alone, list(range(len(alone))), {})
            kept.update({(layer, a + p - before): x for (layer, p), x in made.items() if p >= before})
        clean = {p for a, b in SEGMENTS for p in range(a, b)} - set(rows)
        cached = {key: x for key, x in kept.items() if key[1] in clean}
        at = [p for p in range(len(ids)) if heads_only or p not in clean]
        x, _ = self.run(ids, at, cached, heads_only)
        x = self._norm(x, self.weights["model.norm.weight"]) @ self.weights["model.embed_tokens.weight"].T
        return x.log_softmax(-1)[-len(ANSWER) - 1 :]

    def run(self, ids: list[int], at: list[int], cached: dict, heads_only: bool = False) -> tuple[Tensor, dict]:
        """Last hidden states of the rows `at`, and {(layer, position): (K unrotated, V, attention output, q)}.

        q is not rotated either.
        """
        w, x = self.weights, self.weights["model.embed_tokens.weight"][torch.tensor(ids)[at]]
        cos, sin = self._rotation(len(ids))
        made: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        for layer in range(6):
            name = f"model.layers.{layer}."
            h = self._norm(x, w[name + "input_layernorm.weight"])
            q, k, v = ((h @ w[f"{name}self_attn.{part}_proj.weight"].T).view(len(at), -1, 64) for part in "qkv")
            keys, values = torch.zeros(len(ids), 4, 64), torch.zeros(len(ids), 4, 64)
            keys[at], values[at] = k, v
            local = [head for head in range(4) if self.head_map and self.head_map["layers"][layer][head] == "L"]
            for p in range(len(ids)):
                if (layer, p) in cached:
                    which = local if heads_only else list(range(4))
                    keys[p, which], values[p, which] = (x[which] for x in cached[layer, p][:2])
            plain, turned, q = q, _rotate(keys, cos, sin), _rotate(q, cos[at], sin[at])
            out = torch.zeros(len(at), 8, 64)
            for row, p in enumerate(at):
                for head in range(8):
                    seen = self._mask(len(ids), layer, head // 2)[p]
                    scores = turned[seen, head // 2] @ q[row, head] / 8
                    out[row, head] = scores.softmax(-1) @ values[seen, head // 2]
                    if heads_only and (layer, p) in cached and head // 2 in local:
                        out[row, head] = cached[layer, p][2][head]
                made[layer, p] = keys[p], values[p], out[row], plain[row]
            x = x + out.flatten(1) @ w[name + "self_attn.o_proj.weight"].T
            h = self._norm(x, w[name + "post_attention_layernorm.weight"])
            gate = torch.nn.functional.silu(h @ w[name + "mlp.gate_proj.weight"].T)
            x = x + (gate * (h @ w[name + "mlp.up_proj.weight"].T)) @ w[name + "mlp.down_proj.weight"].T
        return x, made

    def most_deviating(self, layers: Sequence[int], share: float, lead: bool) -> list[int]:
        """Rows that cacheblend and oracle are to repair; rotation keeps lengths, so it does not matter here."""
        ids, before, deviation = PROMPT + ANSWER, SEGMENTS[0][0] if lead else 0, {}
        _, true = self.run(ids, list(range(len(ids))), {})
        inside = [p for a, b in SEGMENTS for p in range(a, b)]
        kept = {}
        for a, b in SEGMENTS:
            alone = ids[:before] + ids[a:b]
            _, made = self.run(alone, list(range(len(alone))), {})
            kept.update({(layer, a + p - before): x for (layer, p), x in made.items() if p >= before})
        for p in inside:
            deviation[p] = 0.0
            for layer in layers:
                wide = [h for h in range(4) if self.head_map and self.head_map["layers"][layer][h] == "G"]
                for part in (0, 1) if wide else ():
                    own = next(range(a, b) for a, b in SEGMENTS if a <= p < b)
                    size = sum(float(true[layer, r][part][wide].square().sum()) for r in own) / len(own)
                    gap = kept[layer, p][part][wide] - true[layer, p][part][wide]
                    deviation[p] += float(gap.square().sum()) / size
        return most(deviation, share)

    def most_changing(self, share: float, lead: bool) -> list[int]:
        """Rows that blend is to repair: heads 1 and 3 of layer 1 get something else, which heads 0 and 2 of layer 2 see."""
        w, before, here = self.weights, SEGMENTS[0][0], {}
        for a, b, start in [(0, 5, 0), *((a, b, before if lead else 0) for a, b in SEGMENTS), (40, 43, 0)]:
            alone = PROMPT[:start] + PROMPT[a:b]
            _, made = self.run(alone, list(range(len(alone))), {})
            here.update({a + p - start: x for (layer, p), x in made.items() if layer == 1 and p >= start})
        cos, sin = self._rotation(63)
        value = w["model.layers.2.self_attn.v_proj.weight"].view(4, 64, 256)[[0, 2]].flatten(0, 1)
        changed, size = {}, {}
        for p in range(63):
            seen = range(p + 1)
            keys = _rotate(torch.stack([here[s][0] for s in seen]), cos[: p + 1], sin[: p + 1])
            query, values = (
                _rotate(here[p][3][None], cos[p : p + 1], sin[p : p + 1])[0],
                torch.stack([here[s][1] for s in seen]),
            )
            change, own = torch.zeros(8, 64), torch.zeros(8, 64)
            for head in (2, 3, 6, 7):
                weight = (keys[:, head // 2] @ query[head] / 8).softmax(-1)
                own[head] = here[p][2][head]
                change[head] = weight @ values[:, head // 2] - own[head]
            out, norm = w["model.layers.1.self_attn.o_proj.weight"], w["model.layers.2.input_layernorm.weight"]
            changed[p], size[p] = (float((value @ (norm * (out @ x.flatten()))).square().sum()) for x in (change, own))
        mean = {p: sum(size[r] for r in range(a, b)) / (b - a) for a, b in SEGMENTS for p in range(a, b)}
        return most({p: changed[p] / mean[p] for p in mean}, share)


def most(change: dict[int, float], share: float) -> list[int]:
    """Of each segment the share of its rows that change most."""
    chosen = [sorted(range(a, b), key=lambda p: -change[p])[: ceil(share * (b - a))] for a, b in SEGMENTS]
    return [p for rows in chosen for p in rows if change[p] > UNCHANGED]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def narrow() -> SegmentedModel:
    return SegmentedModel(MODEL, NARROW)


@pytest.fixture(scope="module")
def shipped() -> SegmentedModel:
    return SegmentedModel(MODEL, MODEL / "head_map.json")


def logits(model: SegmentedModel, policy: str, lead: str = "none", segments: Any = SEGMENTS, seed: int = 3) -> Tensor:
    return model.prefill(PROMPT, segments, policy, lead, seed, ANSWER).logits


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.log_softmax(-1), b.log_softmax(-1), atol=2e-4, rtol=0)


@pytest.mark.parametrize("head_map", [NARROW, SHIPPED, ALL_GLOBAL])
def test_dense_is_the_head_map_oracle(head_map: dict[str, Any]) -> None:
    ids = random.Random(1).choices(range(300, 1500), k=300)
    state = SegmentedModel(MODEL, head_map).prefill(ids[:-4], [], "dense", answer=ids[-4:])
    assert same(state.logits, OracleModel(MODEL, head_map).logprobs(ids)[-5:]) and state.computed == 296


@pytest.mark.parametrize("lead", ["none", "lead"])
@pytest.mark.parametrize(
    "policy",
    ["none", "boundary:3", "random:0.3", "blend:0.3", "cacheblend:0.3", "cacheblend:0.3:3", "oracle:0.3", "heads"],
)
def test_policies_are_the_brute_force_definition(narrow: SegmentedModel, policy: str, lead: str) -> None:
    brute, inside = BruteForce(MODEL, NARROW), [p for a, b in SEGMENTS for p in range(a, b)]
    layers = {"cacheblend:0.3": [2], "cacheblend:0.3:3": [3], "oracle:0.3": range(6)}
    rows: list[int] = []
    if policy in layers:
        rows = brute.most_deviating(layers[policy], 0.3, lead == "lead")
    elif policy == "blend:0.3":
        rows = brute.most_changing(0.3, lead == "lead")
    elif policy == "boundary:3":
        rows = [p for a, b in SEGMENTS for p in range(a, a + 3)]
    elif policy == "random:0.3":
        rng = random.Random(3)
        rows = [p for a, b in SEGMENTS for p in rng.sample(range(a, b), ceil(0.3 * (b - a)))]
    state = narrow.prefill(PROMPT, SEGMENTS, policy, lead, 3, ANSWER)
    assert same(state.logits, brute.segmented(rows, lead == "lead", policy == "heads"))
    assert state.computed == (len(PROMPT) if policy == "heads" else len(PROMPT) - len(inside) + len(rows))
    assert not same(state.logits, logits(narrow, "dense"))


@pytest.mark.parametrize("lead", ["none", "lead"])
@pytest.mark.parametrize("policy", ["boundary:20", "cacheblend:1", "random:1", "oracle:1"])
def test_repairing_all_rows_is_dense(narrow: SegmentedModel, policy: str, lead: str) -> None:
    assert same(logits(narrow, policy, lead), logits(narrow, "dense"))


def test_one_segment_after_its_lead_is_dense(narrow: SegmentedModel) -> None:
    for policy in ("none", "heads", "boundary:2"):
        assert same(logits(narrow, policy, "lead", [(9, 50)]), logits(narrow, "dense"))
    assert not same(logits(narrow, "none", "none", [(9, 50)]), logits(narrow, "dense"))


def test_a_segment_in_front_is_not_moved(narrow: SegmentedModel) -> None:
    state = narrow.prefill(PROMPT, [(0, 30)], "none")
    dense = narrow.prefill(PROMPT, [], "dense")
    assert torch.allclose(state.k, dense.k, atol=1e-4) and torch.allclose(state.v, dense.v, atol=1e-4)
    assert state.computed == len(PROMPT) - 30


def test_heads_without_local_heads_is_dense() -> None:
    model = SegmentedModel(MODEL, ALL_GLOBAL)
    assert same(logits(model, "heads"), logits(model, "dense"))


def test_the_last_row_is_computed_inside_a_segment_too(narrow: SegmentedModel) -> None:
    whole, cut = (narrow.prefill(PROMPT, [(9, end)], "none") for end in (len(PROMPT), len(PROMPT) - 1))
    assert same(whole.logits, cut.logits) and whole.computed == cut.computed == 10


def test_chunks_of_rows_change_nothing(narrow: SegmentedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = ("dense", "none", "boundary:4", "heads")
    before = [logits(narrow, policy) for policy in policies]
    monkeypatch.setattr(segmented, "CHUNK_ROWS", 9)
    assert all(same(logits(SegmentedModel(MODEL, NARROW), p), x) for p, x in zip(policies, before, strict=True))


@pytest.mark.parametrize("policy", ["dense", "none", "boundary:16", "heads"])
def test_greedy_decoding_gives_what_teacher_forcing_says(shipped: SegmentedModel, policy: str) -> None:
    for task in TASKS:
        prompt = make_prompt((task, 320, 1))
        state = shipped.prefill(prompt.ids, prompt.segments, policy)
        forced = shipped.prefill(prompt.ids, prompt.segments, policy, answer=prompt.answer).logits[:-1].argmax(-1)
        for _ in range(2):
            got = shipped.generate(state, len(prompt.answer), token_id(END))
            assert (got == prompt.answer[:-1]) == (forced.tolist() == prompt.answer)
        if policy == "dense":
            assert got == prompt.answer[:-1]


def test_bad_requests_are_refused(shipped: SegmentedModel) -> None:
    for policy in ("blend", "blend:0.1:2", "boundary", "boundary:x", "none:3", "other", "random:2", ""):
        with pytest.raises(ValueError):
            shipped.prefill(PROMPT, SEGMENTS, policy)
    for segments in ([(5, 3)], [(0, 71)], [(-1, 4)], [(0, 9), (8, 12)]):
        with pytest.raises(ValueError, match="ascending"):
            shipped.prefill(PROMPT, segments, "none")
    with pytest.raises(ValueError, match="lead policy"):
        shipped.prefill(PROMPT, SEGMENTS, "none", "some")
    with pytest.raises(ValueError, match="shape"):
        SegmentedModel(MODEL, {"layers": ["GG"] * 6})


@pytest.mark.parametrize("task", list(TASKS))
def test_prompts_are_shuffled_documents_with_answers_in_reach(task: str) -> None:
    moved = 0
    for seed in range(30):
        prompt = make_prompt((task, 640, seed))
        assert len(prompt.ids) == 640 and prompt.segments[-1][1] < 640
        documents = [decode(prompt.ids[a:b]) for a, b in prompt.segments]
        assert all(document.startswith("Report ") and document.endswith("\n") for document in documents)
        if TASKS[task].causal_only:
            kind, label, value = decode(prompt.answer[:-1]).split()
            use = next(i for i, d in enumerate(documents) if f"\n{kind} {label} " in d)
            mark = decode([prompt.ids[prompt.segments[use][0] + prompt.offset]]).strip()
            source = f"\n{'code' if kind == 'box' else kind} {mark} {value}\n"
            assert any(source in document for document in documents[:use])
        given = make_example(task, 640, seed).documents
        assert sorted(documents) == sorted(given)
        moved += documents != given
    assert moved


def test_a_run_cut_short_writes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(bench_repair.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bench_repair.os, "cpu_count", lambda: 1)
    words = ["--n", "5", "--lengths", "256", "--policies", "dense,none,none+lead", "--time-limit", "6"]
    monkeypatch.setattr(sys, "argv", ["bench_repair", *words, "--device", "cpu", "--json", str(tmp_path / "r.json")])
    bench_repair.main()
    found = json.loads((tmp_path / "r.json").read_text())
    assert not found["complete"] and found["cells"] and found["options"]["n"] == 5
    assert all(
        row["n"] == len(row["hits"]) and row["low"] <= row["right"] / row["n"] <= row["high"] for row in found["cells"]
    )
    assert {row["computed_share"] for row in found["cells"] if row["policy"] == "dense"} == {1.0}
