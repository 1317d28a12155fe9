# SPDX-License-Identifier: Apache-2.0
"""Step `decode`: seconds of a decode step, from answers of two lengths to the same batch of requests.

Everything but the decode steps, admission and prefix hits included, is in both times and falls out of their difference:
(T(n2) - T(n1)) / (n2 - n1). Answers come as a whole, so that no side pays for streaming.
"""

from __future__ import annotations

import statistics

from eval.gpu.ask import NotMeasured, Reply, generate, must_be_cached, noise
from eval.gpu.prefix import cached_prompt
from eval.gpu.results import Cell

TAIL = 16


def steps_before(batch: int) -> int:
    """Tokens of the shorter answer: more than the steps that the first request of a batch can be ahead of the last one.

    Requests of 128K tokens take tens of milliseconds each to reach the scheduler.
    """
    return 16 if batch == 1 else 48


def distinct_prompts(batch: int, length: int, kv_tokens: int, steps: int) -> int:
    """How many different cached prompts a batch can have in stock's pool, its tails and answers beside them.

    Where that is fewer than the batch, several requests share one; both servers read each request's KV all the same.
    """
    room = kv_tokens - batch * (TAIL + steps_before(batch) + steps)
    return max(1, min(batch, room // length))


def measure(url: str, side: str, length: int, vocabulary: int, n: int, batch: int, distinct: int, steps: int) -> Cell:
    """Seconds per step of a batch whose requests have `length` cached tokens and `TAIL` of their own.

    Raises requests.HTTPError, NotMeasured.
    """
    prompts = [cached_prompt(vocabulary, length, number) for number in range(distinct)]
    for prompt in prompts:
        generate(url, [prompt], 1)

    def ask(new_tokens: int, number: int) -> Reply:
        requests = [
            prompts[at % distinct] + noise(vocabulary, TAIL, "decode", length, batch, at, new_tokens, number)
            for at in range(batch)
        ]
        reply = generate(url, requests, new_tokens)
        must_be_cached(reply, length)
        return reply

    before = steps_before(batch)
    ask(before, -1)
    pairs = [(ask(before, number).seconds, ask(before + steps, number).seconds) for number in range(n)]
    samples = [(longer - shorter) / steps for shorter, longer in pairs]
    if statistics.median(samples) <= 0:
        raise NotMeasured(f"{steps} more steps took no longer: {samples}; raise --decode-steps")
    details = {"distinct_prompts": distinct, "steps": steps, "before": before, "seconds": pairs}
    return Cell("decode", side, f"batch {batch}", length, "s/step", samples, details)
