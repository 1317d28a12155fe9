# SPDX-License-Identifier: Apache-2.0
"""Chooses a server for a request: little to compute, little ahead of it, and no server far busier than the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from redknot_sglang.route.memory import Memory
from redknot_sglang.route.parts import Wanted, key_of

# A server may have as much work as this times the mean.
MOST_LOAD = 1.25
# What a token of waiting work counts beside a token to compute. Requests are computed together, and what a server holds is
# of use to later ones, too, so it is worth some waiting.
WAITING = 0.25
# What a token that nobody holds counts less on the server that comes first in its order.
OWNED = 0.5
# What a server got of late may be more than the mean by this times the request, before every token of it counts like one to compute,
# and it counts for at most this share of the request: who has most of a request's documents gets it, however much it got before.
AHEAD, MOST_AHEAD = 0.25, 0.5
# Requests after which work of the past counts about a third.
PAST = 64


@dataclass
class Member:
    """A server as the choice sees it.

    name: its address, by which the order of servers for a document is made.
    memory: what it holds.
    outstanding: tokens that it has yet to compute.
    recent: tokens of requests that it was given, past ones counting less and less.
    requests: how many it has been given.
    open: how many of them are not finished.
    """

    name: str
    memory: Memory = field(default_factory=Memory)
    outstanding: int = 0
    recent: float = 0.0
    requests: int = 0
    open: int = 0


@dataclass
class Ticket:
    """A request that a member has: work to be taken off when it is done.

    prompt: tokens of the prompt that had to be computed. answer: tokens of the answer.
    """

    member: Member
    prompt: int
    answer: int

    def begun(self) -> None:
        """The answer has begun, so the prompt is computed."""
        self.member.outstanding -= self.prompt
        self.prompt = 0

    def done(self) -> None:
        """The request has ended, however. To be called once."""
        self.begun()
        self.member.outstanding -= self.answer
        self.member.open -= 1


class Policy(Protocol):
    """How a member is chosen."""

    def choose(self, wanted: Wanted, members: Sequence[Member]) -> Member:
        """The member that gets a request. members: at least one, and only those that may get it."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, wanted: Wanted, members: Sequence[Member]) -> Member:
        """See `Policy`."""
        self._next += 1
        return members[(self._next - 1) % len(members)]


class Documents:
    """Where the request's documents, or its beginning, are.

    The cost of a member is what it had to compute, a part of what waits there, and what it got of late beyond the others: where
    little is going on, nothing waits, and all would go to the few that hold something. A document that nobody holds costs less
    on the first member of its own order (`order`), which is the same in every router. Members with too much work are left
    out, so what many ask for comes to be held by several.
    """

    def choose(self, wanted: Wanted, members: Sequence[Member]) -> Member:
        """See `Policy`."""
        owners = self._owners(wanted, members)
        whole = wanted.tokens
        fair = allowed(members, whole)
        usual = sum(member.recent for member in members) / len(members) + AHEAD * whole

        def cost(member: Member) -> tuple[float, float]:
            held = sum(member.memory.held(prompt) for prompt in wanted.prompts)
            ahead = min(max(0.0, member.recent - usual), MOST_AHEAD * whole)
            cost = whole - held - OWNED * owners.get(member.name, 0) + WAITING * member.outstanding + ahead
            return cost, member.recent

        return min(fair, key=cost)

    @staticmethod
    def _owners(wanted: Wanted, members: Sequence[Member]) -> dict[str, int]:
        """Tokens that no member holds, by the first member of their order."""
        owned: dict[str, int] = {}
        for prompt in wanted.prompts:
            # Blocks need those before them, so the first stands for all.
            for part in prompt.documents or prompt.blocks[:1]:
                if not any(part.key in member.memory for member in members):
                    first = order(part.key, members)[0].name
                    owned[first] = owned.get(first, 0) + part.tokens
        return owned


def order(key: bytes, members: Sequence[Member]) -> list[Member]:
    """Members in the order in which they are to hold a document: rendezvous hashing.

    It depends on key and names alone. If a member goes, only its documents move; if one comes, only those that become its.
    """
    return sorted(members, key=lambda member: key_of(key, member.name), reverse=True)


def allowed(members: Sequence[Member], tokens: int) -> Sequence[Member]:
    """Members that may get a request of so many tokens: those without much more work than the mean, now and of late.

    What was given of late does not count against a member that has nothing to do now: where little is going on, conversations
    stay where they are.
    """
    waiting = sum(member.outstanding for member in members) / len(members)
    recent = sum(member.recent for member in members) / len(members)
    now = [member for member in members if member.outstanding <= MOST_LOAD * waiting + tokens]
    fair = [member for member in now if member.recent <= MOST_LOAD * recent or member.outstanding == 0]
    return fair or now


class Board:
    """Who has what to do."""

    def __init__(self, policy: Policy) -> None:
        """policy: how members are chosen."""
        self.policy = policy

    def send(self, wanted: Wanted, members: Sequence[Member], among: Sequence[Member] | None = None) -> Ticket:
        """Choose a member for a request and write down that it has it.

        wanted: what the request wants computed.
        members: all that are up.
        among: those of them that may get it, or None for all.
        """
        ticket = self.give(wanted, self.policy.choose(wanted, among or members))
        for one in members:
            one.recent *= 1 - 1 / PAST
        ticket.member.recent += ticket.prompt + ticket.answer
        return ticket

    def give(self, wanted: Wanted, member: Member) -> Ticket:
        """Write down what a member has to do, and what it holds then.

        It does not count as given of late: documents that were put onto a member ahead of requests are there to draw requests, and
        must not turn them away.

        wanted: as in `send`.
        member: who got it.
        """
        held = sum(member.memory.held(prompt) for prompt in wanted.prompts)
        ticket = Ticket(member, sum(prompt.tokens for prompt in wanted.prompts) - held, wanted.answer_tokens)
        member.outstanding += ticket.prompt + ticket.answer
        member.requests += 1
        member.open += 1
        member.memory.use(wanted.parts)
        return ticket


POLICIES: dict[str, Callable[[], Policy]] = {"documents": Documents, "round-robin": RoundRobin}
