# SPDX-License-Identifier: Apache-2.0
"""What RedKnot keeps on SGLang's requests and batches: one object on each, under one attribute, `redknot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.identity import Identity
from redknot_sglang.plan.options import make_plan, params_of_others
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.spans import Positions, Span, Spans

_ATTRIBUTE = "redknot"


class PendingChoice(Protocol):
    """Which rows of some segments are to be computed again. The device has been asked and may not have answered yet."""

    @property
    def segments(self) -> Sequence[Span]:
        """The segments in question."""

    def rows(self) -> dict[Span, Positions]:
        """Of each segment, its chosen positions, ascending: int64. Waits for the device if it has to."""


class PendingDocuments(Protocol):
    """Which documents a question asks for. The device has been asked and may not have answered yet."""

    def chosen(self) -> list[int]:
        """Their numbers among the segments, ascending. Waits for the device if it has to."""


class PendingFetch(Protocol):
    """A path that is on its way from the store."""

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to wait for."""

    @property
    def loaded(self) -> int:
        """Tokens that have come."""


@dataclass(frozen=True)
class Selection:
    """What a policy that selects documents (`question:N`) has left of a request's prompt.

    policy: the policy's name.
    segments: how many segments the client's prompt had.
    chosen: numbers of the segments that are left, ascending.
    prompt: tokens of the client's prompt.
    operations: floating-point operations that the choice took, the question's own pass included.
    cached: tokens of what is left that were cached before anything was computed for this request.
    """

    policy: str
    segments: int
    chosen: tuple[int, ...]
    prompt: int
    operations: int
    cached: int


@dataclass(eq=False)
class RequestState:
    """All that RedKnot knows of a request in the scheduler, from its arrival to its end. It outlives retractions.

    Words: a *path* is a text as the prefix tree keeps it; an *isolated prefill* is a request that the scheduler makes
        itself, to
    compute one segment alone; a *local slot* is room for one token's KV of local heads.

    What the request is:
    plan: how its prompt is divided; None in exact mode. It is made once. Rows that are chosen later are added to it. It
        is dropped where the server can never run the request.
    identity: of an isolated prefill, the path that it computes. Nobody waits for its answer.
    preloads: whether it computes a segment that a client wants ahead of time.
    whole: whether local heads keep all positions of the path that it leaves in the tree.
    asks: whether it computes a text that asks for documents, of which only the layers up to the deepest retrieval head are
        needed.
    deep: of such a one, spans of its positions that went through all layers, in forwards with requests of other kinds.

    Where it stands in the tree:
    branch: up to this position its tokens were in the tree, though they could only be reused up to an earlier one; 0
        for none.
    found: tokens of the longest prefix that its last match found, with those that would have to be loaded from the
        host.
    start: tokens of its prompt that were reused from the tree when it was last admitted; what a retraction left is not
        counted.
    counted: tokens of its path whose use has been counted for the eviction policy `redknot`.
    worth: position of its path up to which its use counts for that policy; None for all of it.
    loaded: tokens whose global KV, and tokens whose local KV, was loaded from the host when it was last admitted.
    dead: relocated positions that have no local slot, because no row of a local head sees them.
    feasible_at: how many tokens it had, prompt and answer, when the pools were found to be large enough for it; None
        before.

    What the store was asked for it:
    asked: which of its paths, last. fetches: those of them that are, or were, on their way.

    Its segments:
    sources: by span of the prompt, the paths that are locked for it until it has relocated what it needs of them.
    awaited: paths that were missing when it was last looked at, and are being computed.
    fresh: spans of the prompt for which isolated prefills were begun on its behalf.
    used: paths that it has relocated since it runs, in the order of their use.
    choice: rows that the device has been asked to choose, until the answer is taken.
    documents: documents that the device has been asked to choose, until the answer is taken.
    asking: the state of the isolated prefill that computes, or has computed, the text that asks for its documents; None if
        that text was cached.
    selection: what a policy that selects documents has left of the prompt. By then the plan is dropped: the rest is
        exact mode.
    stretch: the chunk that it has been admitted with, until the forward's batch is made.

    What it took, for its report:
    relocated: rows that were copied from segments.
    repaired: rows of segments that were computed again.
    probed_flops: floating-point operations of its last probe (how `blend` chooses rows).
    """

    plan: Plan | None = None
    identity: Identity | None = None
    preloads: bool = False
    whole: bool = False
    asks: bool = False
    deep: Spans = field(default_factory=list)

    branch: int = 0
    found: int = 0
    start: int = 0
    counted: int = 0
    worth: int | None = None
    loaded: tuple[int, int] = (0, 0)
    dead: Spans = field(default_factory=list)
    feasible_at: int | None = None

    asked: str | int | None = None
    fetches: list[PendingFetch] = field(default_factory=list)

    sources: dict[Span, Any] = field(default_factory=dict)
    awaited: list[Identity] = field(default_factory=list)
    fresh: set[Span] = field(default_factory=set)
    used: dict[Identity, None] = field(default_factory=dict)
    choice: PendingChoice | None = None
    documents: PendingDocuments | None = None
    asking: RequestState | None = None
    selection: Selection | None = None
    stretch: Stretch | None = None

    relocated: int = 0
    repaired: int = 0
    probed_flops: int = 0


def known_state(req: Any) -> RequestState | None:
    """The state that is kept on a scheduler's request; None on a server without RedKnot, and before `state_of` made it."""
    state: RequestState | None = req.__dict__.get(_ATTRIBUTE)
    return state


def state_of(req: Any) -> RequestState:
    """The state of a scheduler's request. The first call makes it and keeps it on the request."""
    state = known_state(req)
    if state is None:
        state = RequestState(make_plan(req.sampling_params.custom_params, len(req.origin_input_ids)))
        setattr(req, _ATTRIBUTE, state)
    return state


def take_options(req: Any) -> None:
    """Make the plan of a scheduler's request and take our options out of its `custom_params`.

    What is left is what stock SGLang has there, for the request's own custom logit processor: the parameters that the
    client gave for it and SGLang's `__req__`, or None where the client gave none.
    """
    state_of(req)
    req.sampling_params.custom_params = params_of_others(req.sampling_params.custom_params)


def is_isolated(req: Any) -> bool:
    """Whether nobody waits for this request's answer."""
    state = known_state(req)
    return state is not None and state.identity is not None


def is_own_work(req: Any) -> bool:
    """Whether this request computes a segment: an isolated prefill, or one that a preload sends."""
    state = known_state(req)
    return state is not None and (state.identity is not None or state.preloads)


@dataclass(frozen=True, eq=False)
class BatchState:
    """What RedKnot knows of a batch that is a gather extend (`plan/gather.py`).

    stretches: the chunks of its segmented requests, by index of the request in the batch.
    """

    stretches: dict[int, Stretch]


def mark_batch(batch: Any, stretches: dict[int, Stretch]) -> None:
    """Keep on SGLang's batch the chunks of segmented requests that it was made with."""
    setattr(batch, _ATTRIBUTE, BatchState(stretches))


def stretches_of(batch: Any) -> dict[int, Stretch]:
    """The chunks of segmented requests in a batch, by index in the batch; empty if there are none."""
    state: BatchState | None = batch.__dict__.get(_ATTRIBUTE)
    return {} if state is None else state.stretches
