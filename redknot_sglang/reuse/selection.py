# SPDX-License-Identifier: Apache-2.0
"""What a repair policy that selects (`question:N`) does: it keeps some documents of a prompt and takes the others out."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.request import PendingDocuments, RequestState, Selection, state_of
from redknot_sglang.plan.spans import Positions, inside, union
from redknot_sglang.reuse.host import settle
from redknot_sglang.reuse.isolated import IsolatedPrefills
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.probe import Piece
from redknot_sglang.reuse.question import ask
from redknot_sglang.reuse.sources import pieces_of


class DocumentSelection:
    """Has the device choose the documents that a request keeps, and shortens the request's prompt to them.

    tree: the HeadClassRadixCache.
    facts: what segmented mode has to know of the model.
    isolated: the isolated prefills (`reuse/isolated.py`), which know whether a forward is under way.
    """

    def __init__(self, tree: Any, facts: ModelFacts, isolated: IsolatedPrefills) -> None:
        self._tree, self._facts, self._isolated = tree, facts, isolated
        self._allocator = tree.token_to_kv_pool_allocator
        self._pool = self._allocator.get_kvcache()

    def chosen(self, req: Any, plan: Plan) -> Sequence[int] | None:
        """Numbers of the segments to keep; None if the device has only now been asked, so that the caller should come
        again.

        The device works through its queue in order. Waiting for the answer while a forward is before it would leave the
        device idle until the next batch is made. A choice stays right if documents are evicted meanwhile: computed
        again, they are the same.

        req: SGLang's Req; all paths that its plan names are locked for it.
        """
        state = state_of(req)
        if state.documents is None:
            state.documents = self.ask(plan, pieces_of(state.sources))
            if self._isolated.is_forward_under_way:
                return None
        return state.documents.chosen()

    def ask(self, plan: Plan, pieces: Sequence[Piece]) -> PendingDocuments:
        """Ask the device, behind the forwards that are under way.

        pieces: all segments and the text that asks, in order, as they were computed behind the lead.
        """
        *documents, text = pieces
        settle(self._pool, self._facts, self._isolated)
        self._isolated.wait_for_forwards()
        assert self._facts.rotation is not None, "admitted without a rotation"
        mapping, count = self._allocator.full_to_swa_index_mapping, plan.repair.documents
        group = self._tree.tp_group
        return ask(self._pool, self._facts.rotation, mapping, count, documents, text, group)

    def apply(self, req: Any, plan: Plan, chosen: Sequence[int]) -> None:
        """Take all segments but the chosen ones out of a request's prompt. From then on it is a request of exact mode.

        chosen: numbers of segments, ascending.
        """
        state, prompt = state_of(req), len(req.origin_input_ids)
        asked, state.documents, state.plan = state.documents is not None, None, None
        positions = plan.left(chosen, prompt)
        _shorten(req, positions)
        req.init_next_round_input(self._tree)
        hit = positions[: state.found]
        cached = len(hit) - int(inside(hit, sorted(state.fresh)).sum())
        if state.fresh.issuperset(plan.segments):
            # Then its lead, too, was computed for this request.
            cached -= int((hit < plan.lead).sum())
        operations = self._operations(plan, prompt, state.asking) if asked else 0
        state.asking = None
        state.selection = Selection(plan.repair.name, len(plan.segments), tuple(chosen), prompt, operations, cached)

    def _operations(self, plan: Plan, prompt: int, asking: RequestState | None) -> int:
        """Operations of a choice on all ranks: the text's own pass behind the lead, and its queries with the keys of
        all segments.

        asking: of the isolated prefill that computed the text, whose rows went through all layers where others shared its
            forward; None if the text was cached.
        """
        arithmetic, early = self._facts.arithmetic, self._facts.asking
        assert arithmetic is not None and early is not None, "admitted without a rotation"
        rows = np.arange(prompt - plan.tail)
        positions = rows + plan.origin
        deep = inside(positions, [] if asking is None else union(asking.deep))
        keys = sum(end - start for start, end in plan.segments)
        # A pair of Arithmetic is a logit and a value; the choice needs no values.
        logits = len(rows) * keys * len(self._pool.whole_map.retrieval) * arithmetic.pair // 2
        return arithmetic.computed(positions[deep]) + early.computed(positions[~deep]) + logits


def _shorten(req: Any, positions: Positions) -> None:
    """Make a request's prompt the tokens at these positions, before anything of it has been computed."""
    prompt = np.array(req.origin_input_ids, dtype=np.int64)
    removed = len(prompt) - len(positions)
    req.origin_input_ids = array("q", prompt[positions].tobytes())
    req.origin_input_ids_unpadded = req.origin_input_ids
    # Empty, so that SGLang makes it anew.
    req.full_untruncated_fill_ids = array("q")
    # Log-probabilities begin in the answer, or in the text behind the documents (`serve/requests.py` refuses any others), and
    # that text keeps its distance from the end. Below 0 means none.
    if req.logprob_start_len >= 0:
        req.logprob_start_len -= removed
