# SPDX-License-Identifier: Apache-2.0
"""Sends dialogues to one server, in closed or open loop, and notes what came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.rag.client import Answer, Client, RequestFailed, make_body
from eval.rag.corpus import Corpus, Question
from eval.rag.traffic import Dialogue, Prompt, make_arrivals, make_warm_up, prompt_of
from eval.tasks.vocabulary import decode
from redknot_sglang.errors import CliError

Place = tuple[int, int]
"""Number of a dialogue, and of a turn in it."""


@dataclass(frozen=True)
class Record:
    """One request. Times are in seconds; `start_s` counts from the beginning of the phase.

    late_s: how long after its arrival it was sent, if requests arrive at a rate; else 0.
    ttft_s: until the first token; `total_s` if none came.
    prompt: digest of its tokens.
    reused: tokens of the prompt that came from the cache, by the server's count.
    computed: those that did not.
    relocated: those that were moved to where this prompt has them, freshly computed segments' included.
    repaired: those of `computed` that lie in a reused segment.
    from_host: those of `reused` that a stock server found in host memory, by its `cached_tokens_details`; 0 of RedKnot, whose
        documents SGLang does not count there.
    output: token ids of the answer without the end marker, which `output_tokens` counts.
    right: whether the answer is right; None if it is not scored.
    began: whether a first token came, although the answer may have failed after it.
    """

    dialogue: int
    turn: int
    task: str
    prompt: str
    prompt_tokens: int
    start_s: float
    late_s: float
    ttft_s: float
    total_s: float
    output: list[int]
    output_tokens: int
    right: bool | None
    reused: int = 0
    relocated: int = 0
    repaired: int = 0
    computed: int = 0
    error: str | None = None
    began: bool = True
    from_host: int = 0

    def as_json(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


@dataclass(frozen=True)
class Load:
    """How a server is asked.

    concurrency: dialogues that are kept under way; None if requests arrive at a rate.
    rate: requests that arrive a second on average; None if `concurrency` says how many are under way.
    answer_tokens: tokens of an answer at most.
    scored: whether answers end where the model ends them, and are compared with the known ones; if not, they have exactly
        `answer_tokens` tokens.
    """

    concurrency: int | None
    rate: float | None
    answer_tokens: int
    scored: bool
    seed: int

    def arrivals(self, dialogues: Sequence[Dialogue]) -> list[float]:
        """Seconds at which dialogues begin in open loop, so many a second that `rate` of their turns are asked."""
        assert self.rate is not None
        turns = sum(map(len, dialogues)) / len(dialogues)
        return make_arrivals(len(dialogues), self.rate / turns, self.seed)


@dataclass(frozen=True)
class Runner:
    """Asks one server under one policy; policy None: stock SGLang."""

    client: Client
    corpus: Corpus
    policy: str | None
    load: Load

    async def wake(self) -> None:
        """One small request, which pays for what a server does only once, and shows that it serves the policy.

        Raises CliError if it fails.
        """
        await self._must_answer(make_warm_up(self.corpus, 1)[0], 4)

    async def show_documents(self, at_once: int) -> None:
        """Requests that bring each document once, `at_once` of them in each. Raises CliError if one fails."""
        for dialogue in make_warm_up(self.corpus, at_once):
            await self._must_answer(dialogue, 1)

    async def _must_answer(self, dialogue: Dialogue, tokens: int) -> None:
        prompt = prompt_of(self.corpus, dialogue, [])
        answer = await self.client.ask(make_body(prompt, self.policy, tokens, ignore_end=True))
        try:
            if answer.error is not None:
                raise RequestFailed(answer.error)
            _classes(answer, prompt, self.policy)
        except RequestFailed as problem:
            # Then none of the requests that count would work.
            where = f"{self.client.url}, {self.policy or 'stock'}"
            raise CliError(f"{where}: a request of the warm-up failed: {problem}") from problem

    async def run(
        self, dialogues: Sequence[Dialogue], history: Mapping[Place, list[int]] | None = None
    ) -> list[Record]:
        """Ask all turns; those of a dialogue one after the other, with the answers to the earlier ones.

        history: those answers by dialogue and turn; None for the ones received. A dialogue ends with a turn that fails,
        or whose answer `history` has not got. Records come in the order of the dialogues.
        """
        gate = asyncio.Semaphore(self.load.concurrency or len(dialogues))
        arrivals = self.load.arrivals(dialogues) if self.load.rate else None
        begin = time.perf_counter()

        async def one(number: int) -> list[Record]:
            due = arrivals[number] if arrivals else None
            if due is not None:
                await asyncio.sleep(begin + due - time.perf_counter())
            records: list[Record] = []
            answers: list[list[int]] = []
            async with gate:
                for turn in range(len(dialogues[number])):
                    prompt = prompt_of(self.corpus, dialogues[number][: turn + 1], answers)
                    answer = await self.client.ask(
                        make_body(prompt, self.policy, self.load.answer_tokens, not self.load.scored)
                    )
                    sent = answer.sent - begin
                    late = sent - due if due is not None and turn == 0 else 0.0
                    question = dialogues[number][turn].question
                    record = self._record(
                        prompt, question, answer, dialogue=number, turn=turn, start_s=sent, late_s=late
                    )
                    records.append(record)
                    known = record.output if history is None else history.get((number, turn))
                    if record.error is not None or known is None:
                        break
                    answers.append(known)
            return records

        found = await asyncio.gather(*map(one, range(len(dialogues))))
        return [record for records in found for record in records]

    def _record(self, prompt: Prompt, question: Question, answer: Answer, **place: Any) -> Record:
        error, classes = answer.error, dict[str, int]()
        if error is None:
            try:
                classes = _classes(answer, prompt, self.policy)
            except RequestFailed as problem:
                error = str(problem)
        scored = self.load.scored and question.answer is not None and error is None
        return Record(
            **place,
            task=question.task,
            prompt=prompt.digest,
            prompt_tokens=len(prompt.ids),
            ttft_s=(answer.finished if answer.first_token is None else answer.first_token) - answer.sent,
            total_s=answer.finished - answer.sent,
            output=answer.ids,
            output_tokens=answer.meta.get("completion_tokens", 0),
            right=decode(answer.ids).strip() == question.answer if scored else None,
            error=error,
            began=answer.first_token is not None,
            **classes,
        )


def _classes(answer: Answer, prompt: Prompt, policy: str | None) -> dict[str, int]:
    """Prompt tokens by class from `meta_info`. Raises RequestFailed if the server is not the one that was meant."""
    told, report = answer.meta, answer.meta.get("redknot")
    if told["prompt_tokens"] != len(prompt.ids):
        raise RequestFailed(f"the server counts {told['prompt_tokens']} prompt tokens, {len(prompt.ids)} were sent")
    if policy is None:
        if report is not None:
            raise RequestFailed("the stock server answered with meta_info.redknot; start it without --redknot")
        from_host = int((told.get("cached_tokens_details") or {}).get("host") or 0)
        computed = told["prompt_tokens"] - told["cached_tokens"]
        return {"reused": told["cached_tokens"], "computed": computed, "from_host": from_host}
    if report is None or report["mode"] != "segmented":
        raise RequestFailed("no segmented meta_info.redknot in the answer; start this server with --redknot")
    return {
        "reused": report["reused_tokens"],
        "relocated": report["relocated_tokens"],
        "repaired": report["repaired_tokens"],
        "computed": report["computed_tokens"],
    }
