# SPDX-License-Identifier: Apache-2.0
"""What a tree says that it holds: pieces, where they are, why they stay, what goes next; bounded, and read without a trace."""

from __future__ import annotations

import json
from typing import Any

import pytest

from redknot_sglang.plan.identity import WHOLE
from redknot_sglang.radix import inventory
from redknot_sglang.radix.ages import CLASSES
from redknot_sglang.radix.inventory import Inventory, mark_document, tenant_label
from redknot_sglang.seams.sglang import ComponentType
from tests.radix.host_simulation import HostSimulation
from tests.radix.test_host_property import Traffic
from tests.radix.test_host_tier import push_out, visit
from tests.versions import needs_host_tier

pytestmark = needs_host_tier

WINDOW, SINK = 8, 2


def simulate(eviction: str = "redknot") -> HostSimulation:
    return HostSimulation((600, 600), (1000, 600), WINDOW, SINK, eviction=eviction)


def read(simulation: HostSimulation, named: bool = False) -> dict[str, Any]:
    found = Inventory(simulation.tree, named).read()
    assert found == json.loads(json.dumps(found)), "JSON types"
    return found


def test_pieces_are_what_no_path_leaves() -> None:
    simulation = simulate()
    shared = list(range(100))
    for number in range(3):
        visit(simulation, [*shared, *[1000 + number] * 40], tenant="one")
        simulation.notice()
    visit(simulation, list(range(500, 550)), tenant="two")
    found = read(simulation)
    label = {name: tenant_label(name, False) for name in ("one", "two")}
    spans = sorted((piece["start"], piece["end"]) for piece in found["pieces"] if piece["tenant"] == label["one"])
    assert spans == [(0, 100), (100, 140), (100, 140), (100, 140)]
    first = next(piece for piece in found["pieces"] if piece["start"] == 0 and piece["tenant"] == label["one"])
    behind = [piece["behind"] for piece in found["pieces"] if piece["start"] == 100]
    assert behind == [first["piece"]] * 3
    # Everything was copied to the host. Local heads keep the sink, and a window where paths part and at each end.
    assert first["classes"]["global"]["both"] == 100
    assert first["classes"]["local"]["both"] == SINK + WINDOW
    assert first["classes"]["global"]["used"] > 0 and first["classes"]["global"]["age"] == 50
    assert found["clock"] == 3 * 140 + 50
    assert [(tenant["tenant"], tenant["pieces"]) for tenant in found["tenants"]] == [
        (label["one"], 4),
        (label["two"], 1),
    ]


@pytest.mark.parametrize("eviction", ["lru", "redknot"])
def test_what_goes_next_goes_next(eviction: str) -> None:
    simulation = simulate(eviction)
    for number in range(4):
        visit(simulation, [2000 + number] * 60)
        simulation.notice()
    visit(simulation, [2000] * 60)
    simulation.notice()

    def leaves() -> dict[int, Any]:
        return {path[0]: node for node, path, _ in simulation.nodes() if len(path) == 60}

    # The first prompt was used again, so the second is the one that goes.
    for kind in CLASSES.values():
        (first, *_), second = simulation.tree.components[kind].first_to_go(3, False), leaves()[2001]
        assert first is second
    simulation.evict(1, 0)
    assert leaves()[2001].evicted and not leaves()[2000].evicted
    simulation.evict(10**6, 10**6)
    found = read(simulation)["next"]
    assert not found["device"]["global"] and len(found["host"]["global"]) == 4
    (first, *_) = simulation.tree.components[ComponentType.FULL].first_to_go(3, True)
    assert first is leaves()[2001]
    assert found["host"]["global"][0]["end"] == 60 and found["host"]["global"][0]["age"] == 3 * 60
    simulation.evict_from_host(1, 0)
    assert set(leaves()) == {2000, 2002, 2003}


def test_hot_cold_and_locked_are_told_apart() -> None:
    simulation = simulate()
    visit(simulation, list(range(60)))
    push_out(simulation)
    (piece,) = read(simulation)["pieces"]
    assert piece["classes"]["global"] == piece["classes"]["global"] | {"device": 0, "both": 0, "host": 60, "locked": 0}
    req = simulation.admit(list(range(60)))
    found = read(simulation)
    assert sum(piece["classes"]["global"]["locked"] for piece in found["pieces"]) == 59
    assert not found["next"]["device"]["global"]
    simulation.finish(req, insert=False)


def test_documents_and_namespaces_have_names_for_people() -> None:
    simulation = simulate()
    visit(simulation, list(range(40)), tenant="one" + WHOLE)
    visit(simulation, list(range(50, 90)), tenant="one\0redknot boundary:16 none")
    (whole,) = [node for node, path, space in simulation.nodes() if len(path) == 40 and str(space).endswith(WHOLE)]
    mark_document(whole)
    assert {(p["kind"], p["whole"]) for p in read(simulation)["pieces"]} == {
        ("document", True),
        ("segmented prompt (boundary:16 none)", False),
    }
    (tenant,) = read(simulation)["tenants"]
    assert (tenant["documents"], tenant["pieces"]) == (1, 2)
    # A path that parts from it in its middle leaves the mark where it was.
    visit(simulation, [*range(20), 7], tenant="one" + WHOLE)
    marked = [p for p in read(simulation)["pieces"] if p["kind"] == "document"]
    assert [(p["start"], p["end"]) for p in marked] == [(20, 40)]


def test_neither_names_nor_texts_get_out_unless_allowed() -> None:
    simulation = simulate()
    visit(simulation, [*range(31000, 31060)], tenant="ACME Inc.")
    hidden, shown = json.dumps(read(simulation)), read(simulation, named=True)
    assert "ACME" not in hidden and "310" not in hidden and "tokens" not in read(simulation)["pieces"][0]
    assert shown["pieces"][0]["tenant"] == "ACME Inc." and shown["pieces"][0]["tokens"] == [*range(31000, 31032)]
    assert tenant_label("", False) is None is tenant_label("", True)


def test_a_large_tree_is_cut_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "_PIECES", 5)
    simulation = simulate()
    for number in range(12):
        visit(simulation, [3000 + number] * (20 + number))
    found = read(simulation)
    assert sorted(piece["end"] for piece in found["pieces"]) == [27, 28, 29, 30, 31]
    assert found["left_out"] == {"pieces": 7, "tokens": sum(range(20, 27)), "nodes": 0}
    monkeypatch.setattr(inventory, "_LOOKED_AT", 10)
    nodes = len(simulation.nodes())
    assert read(simulation)["left_out"]["nodes"] == nodes - 10


@pytest.mark.parametrize("eviction", ["lru", "redknot"])
def test_reading_changes_nothing(eviction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of the same traffic, of which one is read at every step, evict the same."""
    ends = []
    for reads in (False, True):
        simulation = HostSimulation((250, 120), (300, 90), 7, 2, eviction=eviction)
        traffic = Traffic(simulation, 5)
        for _ in range(120):
            traffic.step()
            if reads:
                read(simulation)
        simulation.check_conservation()
        held = [
            (path, [bool(node.component_data[kind].value is not None) for kind in CLASSES.values()])
            for node, path, _ in simulation.nodes()
        ]
        ends.append((held, simulation.figures.tokens))
    assert ends[0] == ends[1]


def test_ages_at_eviction_are_told_by_tier_and_class() -> None:
    simulation, told = simulate(), []
    simulation.tree.ages.told = lambda *what: told.append(what)
    visit(simulation, list(range(60)))
    visit(simulation, list(range(100, 140)))
    simulation.tree.free_path(_key(list(range(100, 140))), set())
    assert not told, "deleting is no eviction"
    push_out(simulation)
    assert {what[:2] for what in told} == {("device", "global"), ("device", "local")}
    assert {what[3] for what in told} == {40}, "tokens that came after it"
    assert sum(what[2] for what in told if what[1] == "global") == 60
    del told[:]
    simulation.evict_from_host(10**6, 10**6)
    assert {what[:2] for what in told} == {("host", "global"), ("host", "local")}


def _key(tokens: list[int]) -> Any:
    from array import array

    from redknot_sglang.seams.sglang import RadixKey

    return RadixKey(array("q", tokens), None)


def test_locked_nodes_are_not_next_under_lru() -> None:
    simulation = simulate("lru")
    visit(simulation, list(range(60)))
    simulation.notice()
    req = simulation.admit(list(range(60)))
    # The last token of a prompt is always computed, so nobody holds its.
    assert [len(node.key) for node in simulation.tree.components[ComponentType.SWA].first_to_go(5, False)] == [1]
    simulation.finish(req, insert=False)
