# SPDX-License-Identifier: Apache-2.0
"""Servers behind a router, as a simulation: what each of them caches, and how long its requests wait."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from eval.route.traffic import Arrival, Traffic, wanted
from redknot_sglang.route.choice import Board, Member, Policy
from redknot_sglang.route.memory import Memory


@dataclass(frozen=True)
class Cluster:
    """What servers are like.

    servers: how many.
    slots: tokens that each can cache: documents, and the prompts made of them.
    speed: tokens that each computes in a second, one request after the other.
    answer_seconds: how long an answer takes once its prompt is computed; answers do not wait for each other.
    """

    servers: int = 4
    slots: int = 524288
    speed: float = 10000.0
    answer_seconds: float = 2.0

    def rate(self, traffic: Traffic, load: float) -> float:
        """Requests a second that would keep all servers busy for a share `load` of the time if nothing were cached."""
        return load * self.servers * self.speed / (traffic.prompt_tokens + traffic.answer_tokens)


@dataclass
class Outcome:
    """What a run came to, after its beginning.

    documents: tokens of documents that requests had. anew: those of them that were computed.
    work: tokens that each server computed.
    waits: seconds from each arrival to its first token.
    """

    documents: int = 0
    anew: int = 0
    work: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)

    @property
    def share_anew(self) -> float:
        """Share of document tokens that were computed, 0 to 1."""
        return self.anew / self.documents

    @property
    def imbalance(self) -> float:
        """Work of the server that had most, over the mean."""
        return max(self.work.values()) * len(self.work) / sum(self.work.values())

    def wait(self, share: float) -> float:
        """Seconds to the first token that this share of requests did not exceed."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Server:
    """A cache that forgets the least recently used, and a queue."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._cached: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._used = 0
        self.free_at = 0.0

    def compute(self, traffic: Traffic, arrival: Arrival, number: int) -> tuple[int, float]:
        """Tokens of documents that had to be computed, and the time of the first token."""
        missing = sum(not self._use(("document", one), traffic.document_tokens) for one in arrival.documents)
        self._use(("prompt", number), traffic.prompt_tokens)
        while self._used > self._cluster.slots:
            self._used -= self._cached.popitem(last=False)[1]
        anew = missing * traffic.document_tokens
        work = anew + traffic.text_tokens + traffic.answer_tokens
        self.free_at = max(self.free_at, arrival.at) + work / self._cluster.speed
        return anew, self.free_at

    def _use(self, key: tuple[str, int], tokens: int) -> bool:
        known = key in self._cached
        self._used += tokens - self._cached.pop(key, 0)
        self._cached[key] = tokens
        return known


def simulate(
    cluster: Cluster, traffic: Traffic, requests: Iterable[Arrival], policy: Callable[[], Policy], warm: int = 0
) -> Outcome:
    """Send requests through a router.

    policy: makes the router's policy.
    warm: requests at the beginning that are not counted, since caches are empty then.
    """
    board, outcome = Board(policy()), Outcome()
    members = [Member(f"http://server-{n}:30000", Memory(cluster.slots)) for n in range(cluster.servers)]
    servers = {member.name: _Server(cluster) for member in members}
    outcome.work = dict.fromkeys(servers, 0)
    coming: list[tuple[float, int, Callable[[], None]]] = []
    ticks = count()
    for number, arrival in enumerate(requests):
        while coming and coming[0][0] <= arrival.at:
            heapq.heappop(coming)[2]()
        ticket = board.send(wanted(traffic, arrival, number), members)
        name = ticket.member.name
        anew, first_token = servers[name].compute(traffic, arrival, number)
        heapq.heappush(coming, (first_token, next(ticks), ticket.begun))
        heapq.heappush(coming, (first_token + cluster.answer_seconds, next(ticks), ticket.done))
        if number >= warm:
            outcome.documents += traffic.documents * traffic.document_tokens
            outcome.anew += anew
            outcome.work[name] += anew + traffic.text_tokens + traffic.answer_tokens
            outcome.waits.append(first_token - arrival.at)
    return outcome
