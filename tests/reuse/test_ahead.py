# SPDX-License-Identifier: Apache-2.0
"""Under `question` the device is asked for documents while it still computes the question."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang.plan.identity import identity_of
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.request import RequestState, state_of
from redknot_sglang.reuse import admission
from redknot_sglang.reuse.probe import Piece
from redknot_sglang.reuse.sources import SegmentSources
from tests.reuse.test_sources import TOKENS, WAITS, Adder, Prefills, Tree

PLAN = Plan(((2, 12), (12, 22), (22, 32)), parse_repair("question:1"), after_lead=True)
TEXT = (32, 40)


class Admission:
    """An admission over `Tree` that holds all documents, its request, and the isolated prefill of the question after a first pass."""

    def __init__(self) -> None:
        tree = Tree()
        *documents, self.text = PLAN.paths(TOKENS, 0)
        tree.held |= {path.key.tobytes() for path in documents}
        it: Any = admission.SegmentAdmission.__new__(admission.SegmentAdmission)
        self.it = it
        it.sources, it._asked = SegmentSources(tree), 0
        it.sources.isolated = Prefills()
        it._is_possible = lambda req, plan: True
        it._selection = self
        self.asked: list[list[Piece]] = []
        self.applied: list[Any] = []
        self.scheduler = SimpleNamespace(waiting_queue=[], chunked_req=None, result_queue=[])
        it.sources.isolated.scheduler = self.scheduler
        self.scheduler.req_to_token_pool = SimpleNamespace(req_to_token=torch.arange(300).view(3, 100).int())
        self.req = SimpleNamespace(full_untruncated_fill_ids=TOKENS, extra_key=None, req_pool_idx=None)
        self.req.sampling_params, self.req.output_ids = SimpleNamespace(max_new_tokens=10), [7]
        self.req.redknot = RequestState(PLAN)
        self.scheduler.waiting_queue.append(self.req)
        assert self.select() is WAITS and not self.asked
        self.prefill = self.scheduler.waiting_queue.pop()
        self.prefill.origin_input_ids = self.text.key
        self.prefill.redknot.identity = identity_of(self.req, self.text)

    def select(self, adder: Any = None) -> Any:
        adder = adder or self.adder()
        found = self.it._select(adder, self.req, PLAN)
        assert adder.rem_total_token_offset == (0 if found is None else adder.reserved)
        return found

    def adder(self, *admitted: Any, running: tuple[Any, ...] = ()) -> Any:
        adder: Any = Adder(idle=True)
        adder.can_run_list += admitted
        adder.running_batch = SimpleNamespace(reqs=list(running), is_empty=lambda: not running)
        # A document of the prompt, the lead, the question, and nine more tokens of the answer.
        adder.reserved = 10 + 2 + 8 + 9
        return adder

    def launch(self, *reqs: Any) -> None:
        self.prefill.req_pool_idx = 1
        self.scheduler.result_queue = [(SimpleNamespace(reqs=list(reqs)), object())]

    # ---- in the place of DocumentSelection ----

    def ask(self, plan: Plan, pieces: list[Piece]) -> Any:
        self.asked.append(pieces)
        return SimpleNamespace(chosen=lambda: [1])

    def apply(self, req: Any, plan: Plan, chosen: Any) -> None:
        self.applied.append(list(chosen))

    def chosen(self, req: Any, plan: Plan) -> Any:
        documents = state_of(req).documents
        assert documents is not None
        return documents.chosen()


@pytest.fixture
def at() -> Admission:
    return Admission()


def test_documents_are_looked_up_while_the_device_computes_the_question(at: Admission) -> None:
    tree = at.it.sources._tree
    assert tree.lookups == 2 and tree.locks == 1, "the first document and the question"
    at.launch(at.prefill)
    assert at.select() is None
    assert tree.lookups == 2 + 3 and tree.locks == 3, "the others, and the question again"


def test_where_the_first_document_is_missing_all_that_is_missing_is_computed_together(at: Admission) -> None:
    at.it.sources.release(at.req)
    at.it.sources.isolated.done(at.prefill)
    for path in PLAN.paths(TOKENS, 0)[:2]:
        at.it.sources._tree.held.remove(path.key.tobytes())
    assert at.select() is WAITS and len(at.scheduler.waiting_queue) == 1 + 3


def test_a_request_that_is_alone_goes_on_behind_the_forward_of_its_question(at: Admission) -> None:
    at.launch(at.prefill)
    assert at.select(at.adder(running=(at.prefill,))) is None and at.applied == [[1]]
    ((*documents, text),) = at.asked
    assert [piece.span for piece in documents] == list(PLAN.segments) and text.span == TEXT
    # The question's slots are those of the prefill's own row, behind the lead.
    assert text.origin == 2 and text.slots.tolist() == list(range(102, 110)) and text.slots.dtype == torch.int64
    assert [len(piece.slots) for piece in documents] == [10, 10, 10]
    # Its locks are still there, for admission to release.
    assert at.it.sources._tree.locks == 3
    at.it.sources.release(at.req)
    assert at.it.sources._tree.locks == 0


@pytest.mark.parametrize("who", ["runs", "waits", "is admitted"])
def test_beside_others_it_is_asked_and_answered_in_a_later_pass(at: Admission, who: str) -> None:
    at.launch(at.prefill)
    other = SimpleNamespace(redknot=RequestState())
    if who == "waits":
        at.scheduler.waiting_queue.append(other)
    admitted, running = [other] * (who == "is admitted"), (other,) * (who == "runs")
    for _ in range(2):
        assert at.select(at.adder(*admitted, running=running)) is WAITS and len(at.asked) == 1 and not at.applied
    at.it.sources.isolated.done(at.prefill)
    at.it.sources._tree.held.add(at.text.key.tobytes())
    at.scheduler.result_queue = []
    assert at.select(at.adder(running=running)) is None
    assert len(at.asked) == 1 and at.applied == [[1]]


@pytest.mark.parametrize("still", ["in the queue", "admitted", "chunked", "another's forward"])
def test_nothing_is_asked_before_the_question_s_last_rows_are_on_the_device(at: Admission, still: str) -> None:
    adder = at.adder()
    if still == "admitted":
        # A middle chunk is under way, the last one begins with this pass.
        at.launch(at.prefill)
        adder = at.adder(at.prefill)
    elif still == "chunked":
        at.launch(at.prefill)
        at.scheduler.chunked_req = at.prefill
    elif still == "another's forward":
        at.launch(object())
    assert at.select(adder) is WAITS and not at.asked


def test_documents_have_to_be_there(at: Admission) -> None:
    """A document that is being computed is not in the tree yet, where the request is about to find it as its prefix."""
    at.launch(at.prefill)
    at.it.sources.release(at.req)
    first, *_ = PLAN.paths(TOKENS, 0)
    at.it.sources._tree.held.remove(first.key.tobytes())
    assert at.select() is WAITS and not at.asked
    behind = [req for req in at.scheduler.waiting_queue if req is not at.req]
    assert len(behind) == 1
    behind[0].origin_input_ids = first.key
    at.launch(at.prefill, *behind)
    behind[0].req_pool_idx = 2
    at.scheduler.waiting_queue.remove(behind[0])
    assert at.select() is WAITS and not at.asked
