# SPDX-License-Identifier: Apache-2.0
"""How many requests a server holds at once, seen from outside."""

from __future__ import annotations

from eval.demo.settings import Settings
from eval.tasks import make_example, render
from redknot_sglang.measure.client import Client, OnAnswer, Request, ask_all
from redknot_sglang.measure.statistics import peak_overlap


async def requests_that_fit(client: Client, settings: Settings, on_answer: OnAnswer) -> int:
    """The largest number of requests that were between their first and their last token at the same time.

    SGLang prefills whatever it has room for before it decodes, and a request that decodes holds all its KV.
    With answers of equal length, and more requests than fit, this is how many the pool holds.
    Raises RuntimeError if a request fails.
    """
    requests = [
        Request(
            render(make_example("lookup", settings.fill_length, seed)),
            settings.fill_answer,
            {"ignore_eos": True},
        )
        for seed in range(settings.fill_requests)
    ]
    answers = await ask_all(client, requests, len(requests), on_answer)
    for answer in answers:
        if answer.error is not None:
            raise RuntimeError(f"a request failed while the server was being filled: {answer.error}")
    return peak_overlap((answer.first_token, answer.finished) for answer in answers)
