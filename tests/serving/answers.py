# SPDX-License-Identifier: Apache-2.0
"""Greedy answers with log-probabilities, and the two comparisons that serving tests make: with another server, with the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.serving.harness import Server
from tests.serving.oracle import OracleModel

# float32 serving: differences come from the order of additions only. Two candidates closer than this are a tie.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answer:
    """One greedy answer.

    logprobs: of the chosen tokens. leads: by how much each chosen token beats the second best (none if not asked for).
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    leads: list[float]
    cached: int
    retractions: int


def read_answer(prompt: list[int], body: dict[str, Any]) -> Answer:
    """The answer in the last object of a `/generate` call."""
    meta = body["meta_info"]
    top = meta.get("output_top_logprobs") or []
    return Answer(
        prompt,
        list(body["output_ids"]),
        [entry[0] for entry in meta["output_token_logprobs"]],
        [best[0] - second[0] for best, second, *_ in top],
        meta["cached_tokens"],
        meta.get("num_retractions") or 0,
    )


def ask(server: Server, prompt: list[int], length: int) -> Answer:
    """One answer of exactly `length` tokens."""
    answer = read_answer(prompt, server.generate(prompt, length, return_logprob=True, top_logprobs_num=2))
    assert len(answer.tokens) == len(answer.logprobs) == length, f"asked for {length} tokens, got {len(answer.tokens)}"
    return answer


def ask_all(server: Server, prompts: Sequence[list[int]], length: int, at_once: int) -> list[Answer]:
    """One answer per prompt, in order, with `at_once` requests in flight."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda prompt: ask(server, prompt, length), prompts))


def ask_again(server: Server, answers: Sequence[Answer], at_once: int) -> list[Answer]:
    """Another server's answers to the same prompts, each as long as the first one, in order, with `at_once` requests in flight."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda answer: ask(server, answer.prompt, len(answer.tokens)), answers))


@dataclass(frozen=True)
class Agreement:
    """How two sources of one answer compare.

    worst: largest difference of the compared log-probabilities. tied: position of the first token that differs although
    its rivals are a tie (None: all tokens are equal); what follows such a token is another text and is not compared.
    """

    worst: float
    tied: int | None


def agree(answer: Answer, reference: Answer, tolerance: float = TOLERANCE) -> Agreement:
    """Compare with a reference server's answer to the same prompt. Raises AssertionError at the first real difference."""
    assert answer.prompt == reference.prompt
    worst = 0.0
    for position, token in enumerate(answer.tokens):
        where = f"token {position} of an answer to {len(answer.prompt)} tokens, {answer.cached} of them cached"
        if token != reference.tokens[position]:
            lead = reference.leads[position]
            assert lead <= tolerance, (
                f"{where}: {token} instead of {reference.tokens[position]}, which leads by {lead:.4f}"
            )
            return Agreement(worst, position)
        difference = abs(answer.logprobs[position] - reference.logprobs[position])
        assert difference <= tolerance, f"{where}: logprob is off by {difference:.5f}"
        worst = max(worst, difference)
    return Agreement(worst, None)


def agree_with_oracle(answer: Answer, oracle: OracleModel) -> float:
    """Largest difference of a log-probability from the oracle's, which reads the answer's own tokens.

    Raises AssertionError if a token is not the oracle's best (but for a tie) or a log-probability is off.
    """
    rows = oracle.logprobs(answer.prompt + answer.tokens)[len(answer.prompt) - 1 : -1]
    worst = 0.0
    for position, (row, token, logprob) in enumerate(zip(rows, answer.tokens, answer.logprobs, strict=True)):
        best = int(row.argmax())
        where = (
            f"token {position} of an answer to {len(answer.prompt)} tokens, {answer.cached} of them cached, "
            f"{answer.retractions} retractions"
        )
        lag = float(row[best] - row[token])
        assert lag <= TOLERANCE, f"{where}: {token}, but the oracle's {best} leads by {lag:.4f}"
        difference = abs(float(row[token]) - logprob)
        assert difference <= TOLERANCE, f"{where}: logprob is off by {difference:.5f}"
        worst = max(worst, difference)
    return worst
