# SPDX-License-Identifier: Apache-2.0
"""The list of preloaded segments beside a real tree."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch

from redknot_sglang.errors import RedKnotError
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.preload import Preloaded, PreloadedSegments
from tests.radix.simulation import Simulation

LONGEST = 900


def segment(tokens: range, lead: range = range(0), extra_key: str | None = None, whole: bool = False) -> Preloaded:
    return Preloaded(array("q", lead), array("q", tokens), extra_key, whole, "blend:0.05" if whole else "none")


def compute(simulation: Simulation, wanted: Preloaded) -> None:
    req = simulation.admit(wanted.key.token_ids, wanted.key.extra_key, wanted.whole)
    simulation.prefill(req, 1000, finish=True)


FACTS = ModelFacts(Rotation(torch.ones(9, 2), True))


def list_of(simulation: Simulation, facts: ModelFacts = FACTS) -> PreloadedSegments:
    return PreloadedSegments(simulation.tree, facts, LONGEST, lambda: None)


@pytest.fixture
def simulation() -> Simulation:
    made = Simulation(1000, 900, window=16, sink=4)
    # Whatever it holds, whole segments can be used.
    pool: Any = made.pool
    pool.probes = object()
    return made


def test_what_was_computed_is_there(simulation: Simulation) -> None:
    preloaded = list_of(simulation)
    for whole in (False, True):
        wanted = [segment(range(100), range(500, 520), "t", whole), segment(range(50, 90), range(500, 520), "t", whole)]
        assert preloaded.want(wanted) == [False, False]
        compute(simulation, wanted[0])
        assert preloaded.want(wanted) == [True, False]
    simulation.check_conservation()
    assert [(entry["tokens"], entry["resident_tokens"]) for entry in preloaded.listed()] == [(100, 100), (40, 0)] * 2
    freed = preloaded.forget(None)
    assert [entry["freed_tokens"] for entry in freed] == [120, 0, 120, 0]
    assert simulation.allocator.full_available_size() == simulation.allocator.size_full
    assert preloaded.listed() == []


def test_a_lead_stays_while_a_listed_segment_needs_it(simulation: Simulation) -> None:
    preloaded = list_of(simulation)
    one, two = (segment(range(at, at + 50), range(500, 520)) for at in (0, 100))
    preloaded.want([one, two])
    compute(simulation, one)
    assert preloaded.forget([one.identity])[0]["freed_tokens"] < 70, "the list says that two begins with the lead, too"
    simulation.check_conservation()


def test_identities_tell_paths_apart() -> None:
    tokens = range(9)
    different = [
        segment(tokens),
        segment(tokens, extra_key=""),
        segment(tokens, extra_key="a"),
        segment(tokens, whole=True),
        segment(range(8)),
    ]
    assert len({entry.identity for entry in different}) == len(different)
    assert segment(range(3, 9), range(3)).identity == segment(tokens).identity, "it is the same path"
    assert Preloaded(array("q"), array("q", tokens), None, False, "boundary:9").identity == segment(tokens).identity


def test_the_list_names_no_more_tokens_than_there_are_slots(simulation: Simulation) -> None:
    preloaded = list_of(simulation)
    parts = [segment(range(at, at + 300)) for at in (0, 1000, 2000, 3000)]
    for part in parts[:3]:
        preloaded.want([part])
    preloaded.want([parts[0]])
    preloaded.want([parts[3]])
    assert [entry["id"] for entry in preloaded.listed()] == [parts[i].identity for i in (2, 0, 3)]


def test_forgetting_what_is_not_listed_forgets_nothing(simulation: Simulation) -> None:
    preloaded = list_of(simulation)
    part = segment(range(9))
    preloaded.want([part])
    with pytest.raises(RedKnotError, match="no segment 'x' is listed"):
        preloaded.forget([part.identity, "x"])
    assert len(preloaded.listed()) == 1


@pytest.mark.parametrize(
    ("sizes", "whole", "names", "remedy"),
    [
        ([850], False, "prompts below 900", "split it"),
        ([840], True, "needs 990 local KV slots", "split it"),
        ([500, 490], False, "these 2 segments need 1041 global KV slots", "fewer at a time"),
        ([400, 400], True, "these 2 segments need 950 local KV slots", "fewer at a time"),
    ],
)
def test_segments_that_cannot_be_there_are_refused(
    simulation: Simulation, sizes: list[int], whole: bool, names: str, remedy: str
) -> None:
    preloaded = list_of(simulation)
    parts = [segment(range(at, at + size), range(5000, 5050), whole=whole) for at, size in enumerate(sizes)]
    with pytest.raises(RedKnotError, match=names) as refusal:
        preloaded.want(parts)
    assert remedy in str(refusal.value)
    assert preloaded.listed() == []


def test_a_model_whose_keys_cannot_be_moved_is_refused(simulation: Simulation) -> None:
    facts = ModelFacts(why_not="mrope positions have several coordinates")
    with pytest.raises(RedKnotError, match="segments need relocation, and mrope"):
        list_of(simulation, facts).want([])


def test_whole_segments_are_refused_where_nothing_probes_them(simulation: Simulation) -> None:
    simulation.pool.probes = None
    preloaded = list_of(simulation)
    assert preloaded.want([segment(range(9))]) == [False]
    with pytest.raises(
        RedKnotError,
        match="blend:0.05 needs a head map with global heads in at least two layers.*use repair boundary:K or none",
    ):
        preloaded.want([segment(range(9), whole=True)])
