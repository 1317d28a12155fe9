# SPDX-License-Identifier: Apache-2.0
"""Every method finds the classes of the model whose classes are known by construction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.model import ProfiledModel
from redknot_sglang.profile.select import ranking
from tests.profile.known_heads import DIM, GLOBAL, GROUP, WINDOW, known_example, known_model, known_study


@pytest.fixture(scope="module")
def evidence() -> dict:
    study = known_study()
    return {name: method(study) for name, method in METHODS.items()}


def test_the_model_is_what_its_construction_says() -> None:
    study = known_study()
    dense, exact = study.loss((), WINDOW)
    assert exact == 1 and dense < 0.01
    local = [head for head in study.heads if head not in GLOBAL]
    assert study.loss(local, WINDOW) == (pytest.approx(dense, abs=1e-6), 1.0)
    for head in GLOBAL:
        loss, exact = study.loss([*local, head], WINDOW)
        assert exact == 0.5 and loss > 1  # half of the prompts ask each of them


def test_the_local_heads_work() -> None:
    """Without its first head, the previous token, the induction head finds nothing."""
    model = known_model()
    model.model.layers[0].self_attn.o_proj.weight[:, : GROUP * DIM] = 0
    study = replace(known_study(), model=ProfiledModel(model, 40))
    assert study.loss((), WINDOW)[1] == 0.5


@pytest.mark.parametrize("name", METHODS)
def test_classes_are_recovered_exactly(name: str, evidence: dict) -> None:
    harm = evidence[name].harm[WINDOW]
    assert sorted(ranking(harm)[: len(GLOBAL)]) == GLOBAL
    others = [value for layer, row in enumerate(harm) for head, value in enumerate(row) if (layer, head) not in GLOBAL]
    # An order has no gap. The others are far from each other: no threshold is needed to tell the classes.
    if name != "greedy":
        assert min(harm[layer][head] for layer, head in GLOBAL) > 100 * max(0, *others) + 1e-4


def test_greedy_stops_before_the_global_heads(evidence: dict) -> None:
    path = evidence["greedy"].detail["path"][str(WINDOW)]
    assert len(path) == 4 and path[-1]["loss"] < 0.01
    assert not {(step["layer"], step["head"]) for step in path} & set(GLOBAL)


def test_a_kv_head_is_judged_by_the_query_head_that_needs_most(evidence: dict) -> None:
    detail = evidence["mass"].detail
    for layer, head in GLOBAL:
        asks, looks_back = detail["query_heads"][str(WINDOW)][layer][GROUP * head :][:GROUP]
        assert asks > 1e-3 and looks_back < 1e-9
        assert evidence["mass"].harm[WINDOW][layer][head] == asks
        assert detail["mean"][str(WINDOW)][layer][head] == pytest.approx(asks / 2)


def test_mass_curves_fall_with_the_window(evidence: dict) -> None:
    for name in ("mass", "distortion"):
        curve = torch.tensor([evidence[name].harm[window] for window in sorted(evidence[name].harm)])
        assert bool((curve[1:] <= curve[:-1] + 1e-6).all())


def test_mass_is_fooled_by_an_idle_head_and_the_others_are_not() -> None:
    """A head that looks everywhere alike and writes nothing: most mass outside the window, and no harm."""
    model = known_model()
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight[: GROUP * DIM] = 0
    attention.o_proj.weight[:, : GROUP * DIM] = 0
    study = replace(known_study(), model=ProfiledModel(model, 40))
    first = {name: ranking(METHODS[name](study).harm[WINDOW])[0] for name in ("mass", "distortion", "ablation")}
    assert first["mass"] == (1, 0)
    assert first["distortion"] in GLOBAL and first["ablation"] in GLOBAL


def test_ablation_misses_heads_that_stand_in_for_each_other_and_greedy_does_not() -> None:
    """The induction head twice, each at half gain: one alone is not missed, both are."""
    model = known_model()
    attention = model.model.layers[1].self_attn
    copied, spare = (slice(head * GROUP * DIM, (head + 1) * GROUP * DIM) for head in (2, 1))
    attention.q_proj.weight[spare] = attention.q_proj.weight[copied]
    attention.o_proj.weight[:, spare] = attention.o_proj.weight[:, copied]
    for matrix in (attention.k_proj, attention.v_proj):
        matrix.weight[DIM : 2 * DIM] = matrix.weight[2 * DIM : 3 * DIM]
    study = replace(known_study(examples=4), model=ProfiledModel(model, 40))
    single = METHODS["ablation"](study).harm[WINDOW]
    assert max(single[1][1], single[1][2]) < 0.05
    # Four turn local; the marker's head is needed, and one of the twins.
    left = set(study.heads) - {(s["layer"], s["head"]) for s in METHODS["greedy"](study).detail["path"][str(WINDOW)]}
    assert (0, 1) in left and len(left & {(1, 1), (1, 2)}) == 1


def test_prompts_are_longer_than_the_window_reaches() -> None:
    for seed in range(6):
        example = known_example(seed, 96)
        assert example.ids.index(example.ids[example.first]) < len(example.ids) - WINDOW - 20
