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
    """Repaired rows of some segments, which the device may not have found yet."""

    @property
    def segments(self) -> Sequence[Span]:
        """The segments in question."""

    def rows(self) -> dict[Span, Positions]:
        """Of each segment, ascending. Waits until they are there."""


class PendingDocuments(Protocol):
    """The documents that a question asks for, which the device may not have found yet."""

    def chosen(self) -> list[int]:
        """Their numbers among the segments, ascending. Waits until they are there."""


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
    """What a policy that selects has left of a request's prompt.

    policy: its name. segments: how many the prompt had. chosen: numbers of those that are left, ascending. prompt: tokens that it
    had. operations: that the choice took, the question's own pass included. cached: tokens of what is left that were in the
    cache before anything was computed for this request.
    """

    policy: str
    segments: int
    chosen: tuple[int, ...]
    prompt: int
    operations: int
    cached: int


@dataclass(eq=False)
class RequestState:
    """What is known of a request in the scheduler, from its arrival to its end; retractions included.

    What it is:
    plan: its prompt's division, None in exact mode; made once. Rows that are chosen later are added to it, and it goes
    where the server can never run the request.
    identity: of the path that it computes, if it is an isolated prefill, whose answer nobody waits for.
    preloads: it computes a segment that a client wants ahead of time.
    whole: all positions of its path stay live in the local class.

    Where it stands in the tree:
    branch: position up to which its tokens were there, though they could be reused to an earlier one only; 0 for none.
    found: tokens of the longest prefix that its last match found, those included that would have to be loaded from the host.
    start: tokens of its prompt that were reused from the tree when it was admitted last, retractions not counted.
    counted: tokens of its path whose use was counted for the eviction policy `redknot`.
    loaded: tokens whose global and local KV was loaded from the host when it was admitted last.
    dead: relocated positions without a local slot, since no row sees them.
    feasible_at: its tokens, prompt and answer, when the pools were found to be large enough for it; None before.

    What the store was asked for it:
    asked: which of its paths, last. fetches: those of them that are, or were, on their way.

    Its segments:
    sources: paths that are locked for it, by span of the prompt, until it has relocated what it needs of them.
    awaited: paths that were missing when it was looked at last, and are being computed.
    fresh: spans of the prompt that isolated prefills were begun for on its behalf.
    used: paths that it has relocated while it runs, in this order.
    choice: rows that the device has been asked to choose, until the answer is taken. documents: the same of a policy that
    selects. selection: what that policy has left of the prompt; the plan is gone then, the rest is exact mode.
    stretch: the chunk that it has been admitted with, until the forward's batch is made.

    What it took, for its report:
    relocated, repaired: rows. probed_flops: operations of its last probe.
    """

    plan: Plan | None = None
    identity: Identity | None = None
    preloads: bool = False
    whole: bool = False

    branch: int = 0
    found: int = 0
    start: int = 0
    counted: int = 0
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
    selection: Selection | None = None
    stretch: Stretch | None = None

    relocated: int = 0
    repaired: int = 0
    probed_flops: int = 0


def known_state(req: Any) -> RequestState | None:
    """What is known of a scheduler's request; None on a server without RedKnot, and before anybody asked for it."""
    state: RequestState | None = req.__dict__.get(_ATTRIBUTE)
    return state


def state_of(req: Any) -> RequestState:
    """The same, made at the first call and kept on the request."""
    state = known_state(req)
    if state is None:
        state = RequestState(make_plan(req.sampling_params.custom_params, len(req.origin_input_ids)))
        setattr(req, _ATTRIBUTE, state)
    return state


def take_options(req: Any) -> None:
    """Make the plan of a scheduler's request and take our options out of its `custom_params`.

    What is left is what stock SGLang has there, for the request's own custom logit processor: the parameters that the client
    gave for it and SGLang's `__req__`, or None where the client gave none.
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
    """What is known of a gather extend's batch. stretches: by index of the request in the batch, of those that have one."""

    stretches: dict[int, Stretch]


def mark_batch(batch: Any, stretches: dict[int, Stretch]) -> None:
    """Keep the stretches that a batch was made with."""
    setattr(batch, _ATTRIBUTE, BatchState(stretches))


def stretches_of(batch: Any) -> dict[int, Stretch]:
    """Stretches of a batch, none if it is no gather extend."""
    state: BatchState | None = batch.__dict__.get(_ATTRIBUTE)
    return {} if state is None else state.stretches
