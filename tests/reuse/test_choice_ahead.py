# SPDX-License-Identifier: Apache-2.0
"""When admission waits for the rows a probe chooses, and when it asks and comes back in the next pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.request import RequestState
from redknot_sglang.plan.spans import Span
from redknot_sglang.pool.relocation import RelocationQueue
from redknot_sglang.reuse import admission
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.probe import Choice

SEGMENTS = [(2, 6), (6, 9)]


class Sources:
    """Locks of the request are not looked at here."""

    def __init__(self) -> None:
        self.isolated = IsolatedPrefills()
        self.isolated.scheduler = SimpleNamespace(result_queue=[])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Span]]:
    found: list[list[Span]] = []

    def choose_rows(pool: Any, facts: Any, mapping: Any, count: Any, pieces: Any, segments: list[Span]) -> Choice:
        assert count(8) == 2, "a quarter"
        found.append(list(segments))
        return Choice(segments, [1] * len(segments), torch.tensor([start + 1 for start, _ in segments]), None)

    monkeypatch.setattr(admission, "choose_rows", choose_rows)
    return found


def make(under_way: bool) -> tuple[Any, Any]:
    """An admission, on a device that runs a forward or does not, and a request whose segments are all there."""
    it: Any = admission.SegmentAdmission.__new__(admission.SegmentAdmission)
    it.sources, it._asked = Sources(), 0
    it.sources.isolated.scheduler.result_queue += [object()] * under_way
    it.allocator = SimpleNamespace(full_to_swa_index_mapping=None)
    it._pool = SimpleNamespace(relocations=RelocationQueue())
    it._facts = SimpleNamespace(arithmetic=SimpleNamespace(probed=len))
    source = SimpleNamespace(path=SimpleNamespace(origin=0), slots=torch.zeros(0))
    req = SimpleNamespace(redknot=RequestState(Plan(tuple(SEGMENTS), parse_repair("blend:0.25"))))
    req.redknot.sources = dict.fromkeys([(0, 2), *SEGMENTS], source)
    return it, req


def test_an_idle_device_is_waited_for(asked: list[list[Span]]) -> None:
    it, req = make(under_way=False)
    plan = it._choose(req, req.redknot.plan, 0)
    assert asked == [SEGMENTS]
    assert {span: rows.tolist() for span, rows in plan.choices.items()} == {(2, 6): [3], (6, 9): [7]}
    assert req.redknot.probed_flops == 7


def test_a_busy_device_is_asked_and_answers_in_the_next_pass(asked: list[list[Span]]) -> None:
    it, req = make(under_way=True)
    assert it._choose(req, req.redknot.plan, 0) is None and it._asked == 1
    assert not req.redknot.plan.choices, "nothing is known yet"
    plan = it._choose(req, req.redknot.plan, 0)
    assert asked == [SEGMENTS] and it._asked == 1
    assert np.array_equal(plan.choices[2, 6], [3]) and req.redknot.choice is None


def test_an_answer_to_another_question_is_not_taken(asked: list[list[Span]]) -> None:
    it, req = make(under_way=True)
    assert it._choose(req, req.redknot.plan, 0) is None
    # Meanwhile more of the prompt is found in the tree.
    assert it._choose(req, req.redknot.plan, 6) is None and asked == [SEGMENTS, SEGMENTS[1:]]
    assert list(it._choose(req, req.redknot.plan, 6).choices) == [(6, 9)]
