# SPDX-License-Identifier: Apache-2.0
"""How closely two servers agree on the same prompts: greedy answers, and log-probabilities of given text.

bf16 servers differ by rounding alone, so a difference means something only beside a control: the same comparison of
stock SGLang with itself under another attention backend.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import requests

AT_ONCE = 8
FORCED = 64
TIMEOUT = 500


@dataclass(frozen=True)
class Reply:
    """What a server answered to one prompt, with greedy decoding.

    tokens: ids of the answer.
    logprobs: their log-probabilities in nats.
    leads: for each, the best log-probability minus the second best, in nats.
    forced: log-probabilities in nats of the prompt's last FORCED tokens, which no server chooses.
    """

    tokens: list[int]
    logprobs: list[float]
    leads: list[float]
    forced: list[float]


@dataclass(frozen=True)
class Agreement:
    """Answers compared up to their first differing token.

    same: number of equal answers.
    ties: number of answers whose first differing token leads by at most the tolerance in the reference.
    parted: number of the others.
    answer_*: absolute differences of the answers' log-probabilities, in nats.
    forced_*: the same of the prompts' last tokens.
    """

    prompts: int
    same: int
    ties: int
    parted: int
    answer_mean: float
    answer_p99: float
    answer_max: float
    forced_mean: float
    forced_p99: float
    forced_max: float
    finite: bool

    def report(self) -> dict[str, Any]:
        """Fields, floats rounded for reading."""
        return {name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in asdict(self).items()}


def replies(url: str, prompts: Sequence[list[int]], new_tokens: int) -> list[Reply]:
    """Greedy replies in the order of `prompts`, `AT_ONCE` in flight. Raises requests.HTTPError."""

    def one(ids: list[int]) -> Reply:
        body: dict[str, Any] = {
            "input_ids": ids,
            "sampling_params": {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": len(ids) - FORCED - 1,
            "top_logprobs_num": 2,
        }
        answer = requests.post(url + "/generate", json=body, timeout=TIMEOUT)
        answer.raise_for_status()
        meta = answer.json()["meta_info"]
        chosen = meta["output_token_logprobs"]
        leads = [best[0] - second[0] for best, second, *_ in meta["output_top_logprobs"]]
        forced = [entry[0] for entry in meta["input_token_logprobs"][-FORCED:]]
        return Reply([entry[1] for entry in chosen], [entry[0] for entry in chosen], leads, forced)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, prompts))


def compare(ours: Sequence[Reply], reference: Sequence[Reply], tolerance: float) -> Agreement:
    """Agreement of two servers' replies to the same prompts."""
    same = ties = parted = 0
    answer: list[float] = []
    for a, b in zip(ours, reference, strict=True):
        for position, token in enumerate(a.tokens):
            if token != b.tokens[position]:
                tied = b.leads[position] <= tolerance
                ties, parted = ties + tied, parted + (not tied)
                break
            answer.append(abs(a.logprobs[position] - b.logprobs[position]))
        else:
            same += 1
    forced = [abs(x - y) for a, b in zip(ours, reference, strict=True) for x, y in zip(a.forced, b.forced, strict=True)]
    finite = all(abs(x) < 1e4 for reply in (*ours, *reference) for x in (*reply.logprobs, *reply.forced))
    return Agreement(len(ours), same, ties, parted, *_figures(answer), *_figures(forced), finite)


def _figures(gaps: list[float]) -> tuple[float, float, float]:
    """Mean, 99th percentile, maximum; NaN, which no bound accepts, if nothing could be compared."""
    if not gaps:
        return math.nan, math.nan, math.nan
    return statistics.fmean(gaps), sorted(gaps)[int(0.99 * (len(gaps) - 1))], max(gaps)
