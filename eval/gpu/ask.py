# SPDX-License-Identifier: Apache-2.0
"""Timed requests of token ids to SGLang's own endpoint, and the random prompts of the steps."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import requests

# Four times what the slowest prompt of a step takes: a server that hangs must not use up a lent machine.
TIMEOUT = 180
# Below lie special tokens of the models that are served.
FIRST_ID = 300


@dataclass(frozen=True)
class Reply:
    """Seconds from sending to the last byte of the answer, and `meta_info` of each prompt in it."""

    seconds: float
    metas: list[dict[str, Any]]

    @property
    def cached(self) -> list[int]:
        """Tokens of each prompt that came from the cache."""
        return [meta["cached_tokens"] for meta in self.metas]


class NotMeasured(RuntimeError):
    """The server did not do what the cell is to time; the message says what it did."""


def generate(
    url: str, prompts: Sequence[Sequence[int]], new_tokens: int, params: dict[str, Any] | None = None
) -> Reply:
    """Greedy answers of exactly `new_tokens` to all prompts, sent in one request and answered as a whole.

    With new_tokens 1 and one prompt the seconds are its time to first token. params: `custom_params`. Raises
    requests.HTTPError, NotMeasured if an answer is shorter.
    """
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True, "custom_params": params}
    ids = prompts[0] if len(prompts) == 1 else prompts
    # 128K numbers take tens of milliseconds to write down, which are not the server's.
    data = json.dumps({"input_ids": ids, "sampling_params": sampling}).encode()
    begin = time.perf_counter()
    reply = requests.post(url + "/generate", data=data, headers={"Content-Type": "application/json"}, timeout=TIMEOUT)
    seconds = time.perf_counter() - begin
    reply.raise_for_status()
    found = reply.json()
    metas = [answer["meta_info"] for answer in (found if isinstance(found, list) else [found])]
    short = [meta["completion_tokens"] for meta in metas if meta["completion_tokens"] != new_tokens]
    if short or len(metas) != len(prompts):
        raise NotMeasured(f"{len(metas)} answers to {len(prompts)} prompts, {len(short)} not of {new_tokens} tokens")
    return Reply(seconds, metas)


def noise(vocabulary: int, count: int, *name: object) -> list[int]:
    """Random token ids that depend on `name` only, so that every side gets the same; distinct names share no prefix."""
    rng = random.Random(" ".join(map(str, name)))
    return rng.choices(range(FIRST_ID, vocabulary), k=count)


def must_be_cached(reply: Reply, tokens: int) -> None:
    """Raise NotMeasured unless each prompt found `tokens` in the cache, up to the few that a page or window costs."""
    least = min(reply.cached)
    if least < 0.98 * tokens:
        raise NotMeasured(f"only {least} of {tokens} tokens of a prompt were cached; the KV pool may be too small")
