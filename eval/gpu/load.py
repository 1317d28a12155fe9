# SPDX-License-Identifier: Apache-2.0
"""Step `load`: the highest rate of Poisson arrivals at which p99 of the time to first token keeps a limit.

Permuted documents of a shared corpus (eval/rag), all seen before, each side with its cache. A probe sends arrivals of
one rate for a fixed time, the same on both sides, so that a queue that grows has as long to grow; a first token that has not
come after two limits counts as too late. Rates go up or down by a factor until one keeps the limit and one does
not, then halve the gap on a logarithmic scale. All probes draw their gaps between arrivals from one seed, so that a faster one is
the same crowd closer together and not another crowd; what they ask differs, or the second would find its prompts cached.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.gpu.results import Cell
from eval.rag.client import Client
from eval.rag.corpus import Corpus
from eval.rag.load import Load, Record, Runner
from eval.rag.task_corpus import TaskCorpus
from eval.rag.traffic import PERMUTED, Shape, make_dialogues
from eval.servers import STOCK, flush
from redknot_sglang.measure.statistics import quantile

ANSWER_TOKENS = 16
# An answer later than this many limits is given up; the probe has failed long before.
_GIVE_UP = 2
# Seconds of a request that is no probe's.
_PATIENCE = 120
_ARRIVALS_SEED = 1


@dataclass(frozen=True)
class Plan:
    """What a side is asked.

    documents: documents of the corpus.
    tokens: tokens of each.
    per_request: documents of a prompt.
    limit: seconds to the first token that 99 % of the requests must keep.
    seconds: seconds for which requests arrive in a probe.
    factor: quotient of two rates that are tried after each other, until one keeps the limit and one does not.
    refine: probes between these two.
    box: seconds after which no further probe begins.
    """

    documents: int
    tokens: int
    per_request: int
    limit: float = 5.0
    seconds: float = 60.0
    factor: float = 1.3
    refine: int = 1
    box: float = 300.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt and its answer, about, at most; questions of the tasks are short."""
        return self.per_request * self.tokens + 256 + ANSWER_TOKENS

    def corpus(self) -> Corpus:
        """Generated documents. Raises ValueError for sizes that cannot be."""
        return TaskCorpus(self.documents, self.tokens, seed=1)


@dataclass(frozen=True)
class Probe:
    """What came of one rate.

    rate: requests that arrived a second.
    ttft: seconds to the first token of each request, in order of arrival; infinite if none came in time.
    served: first tokens a second, until the last one came; when too much is asked it is what the server can do.
    failed: requests that timed out after their first token.
    """

    rate: float
    ttft: list[float]
    served: float
    failed: int
    seconds: float
    cached_share: float

    @property
    def p99(self) -> float:
        """Of the times to first token."""
        return quantile(self.ttft, 0.99) if all(map(math.isfinite, self.ttft)) else math.inf

    def as_json(self) -> dict[str, Any]:
        """None stands for infinite times, which JSON has not; times have three digits, so that thousands take little room."""
        finite = [float(f"{value:.3g}") if math.isfinite(value) else None for value in self.ttft]
        p99 = self.p99 if math.isfinite(self.p99) else None
        shown: dict[str, Any] = {"rate": self.rate, "n": len(self.ttft), "p99": p99}
        shown |= {"served": self.served, "failed": self.failed, "ttft": finite}
        return {**shown, "seconds": self.seconds, "cached_share": self.cached_share}


@dataclass(frozen=True)
class Search:
    """Highest rate that kept the limit, 0 if none did; lowest that did not, infinite if none failed."""

    kept: float
    failed: float

    @property
    def is_bracketed(self) -> bool:
        """Whether the limit lies between two measured rates."""
        return 0 < self.kept and math.isfinite(self.failed)


def search(probe: Callable[[float], bool], start: float, factor: float, refine: int, on: Callable[[], bool]) -> Search:
    """Bracket by `factor` from `start`, then `refine` probes at geometric means.

    probe: whether a rate keeps the limit. on: whether there is time for another probe; the first one is always made.
    """
    found, rate, left = Search(0.0, math.inf), start, refine
    while True:
        found = (
            Search(max(found.kept, rate), found.failed) if probe(rate) else Search(found.kept, min(found.failed, rate))
        )
        if found.is_bracketed:
            if not left:
                return found
            left -= 1
            rate = math.sqrt(found.kept * found.failed)
        else:
            rate = rate * factor if found.kept else rate / factor
        if not on():
            return found


def measure(url: str, side: str, policy: str | None, plan: Plan, start: float | None = None) -> Cell:
    """The cell of a side; policy: RedKnot's, None for stock. start: the first rate, else from closed-loop throughput.

    The cell's value is what was served under the highest rate that kept the limit. A minute of arrivals can be a few
    per cent faster than the server and still keep it, so that this is first tokens a second where those are fewer.
    Raises CliError if the warm-up fails, RuntimeError if no rate kept the limit in the time there is, OSError.
    """
    corpus = plan.corpus()
    flush(url)
    asyncio.run(_show(url, corpus, policy, plan))
    begin = time.monotonic()
    probes: list[Probe] = []

    def keeps(rate: float) -> bool:
        probes.append(asyncio.run(_probe(url, corpus, policy, plan, rate, 1 + len(probes))))
        return probes[-1].p99 <= plan.limit

    first = start or asyncio.run(_closed_loop(url, corpus, policy, plan))
    found = search(keeps, first, plan.factor, plan.refine, lambda: time.monotonic() - begin < plan.box)
    if not found.kept:
        raise RuntimeError(
            f"p99 was over {plan.limit} s at all rates down to {probes[-1].rate:.3g}/s; give --load-box more"
        )
    details = {
        "policy": policy or STOCK,
        "limit_s": plan.limit,
        "kept_rate": found.kept,
        "failed_rate": found.failed if math.isfinite(found.failed) else None,
        "documents": plan.documents,
        "document_tokens": plan.tokens,
        "per_request": plan.per_request,
        "answer_tokens": ANSWER_TOKENS,
        "probes": [probe.as_json() for probe in probes],
    }
    served = min(found.kept, next(probe.served for probe in probes if probe.rate == found.kept))
    return Cell("load", side, policy or "", plan.per_request * plan.tokens, "requests/s", [served], details)


async def _show(url: str, corpus: Corpus, policy: str | None, plan: Plan) -> None:
    async with Client(url, _PATIENCE) as client:
        runner = Runner(client, corpus, policy, Load(1, None, ANSWER_TOKENS, False, _ARRIVALS_SEED))
        await runner.wake()
        await runner.show_documents(plan.per_request)


async def _run(
    url: str, corpus: Corpus, policy: str | None, plan: Plan, load: Load, count: int, seed: int, timeout: float
) -> list[Record]:
    dialogues = make_dialogues(corpus, PERMUTED, Shape(turns=1, documents=plan.per_request), count, seed)
    async with Client(url, timeout) as client:
        return await Runner(client, corpus, policy, load).run(dialogues)


async def _closed_loop(url: str, corpus: Corpus, policy: str | None, plan: Plan) -> float:
    """Requests a second with four under way, from eight of them."""
    load = Load(4, None, ANSWER_TOKENS, False, _ARRIVALS_SEED)
    records = await _run(url, corpus, policy, plan, load, 8, 1000, _PATIENCE)
    _must_answer(records)
    return len(records) / max(record.start_s + record.total_s for record in records)


async def _probe(url: str, corpus: Corpus, policy: str | None, plan: Plan, rate: float, seed: int) -> Probe:
    count = max(2, round(rate * plan.seconds))
    load = Load(None, rate, ANSWER_TOKENS, False, _ARRIVALS_SEED)
    records = await _run(url, corpus, policy, plan, load, count, seed, _GIVE_UP * plan.limit)
    done = [record for record in records if record.error is None]
    # A server that is too slow lets clients time out; one that refuses must not look like it.
    _must_answer([record for record in records if record.error and not record.error.startswith("TimeoutError")])
    tokens = sum(record.prompt_tokens for record in done)
    share = sum(record.reused for record in done) / tokens if tokens else 0.0
    ttft = [record.late_s + record.ttft_s if record.began else math.inf for record in records]
    came = [record.start_s + record.ttft_s for record in records if record.began]
    served = len(came) / max(came) if came else 0.0
    failed = sum(record.began and record.error is not None for record in records)
    return Probe(rate, ttft, served, failed, max(record.start_s + record.total_s for record in records), share)


def _must_answer(records: list[Record]) -> None:
    failed = next((record.error for record in records if record.error is not None), None)
    if failed is not None:
        raise RuntimeError(f"a request failed: {failed}")
