# SPDX-License-Identifier: Apache-2.0
"""What the shipped map saves: bytes of a finished prefix, and requests in the same number of bytes.

At 2K tokens, where local heads save less than at the 4K of nightly runs.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.serving import harness
from tests.serving.harness import Server
from tests.serving.prompts import noise

pytestmark = pytest.mark.serving

LENGTH, FULL_LENGTH = 2000, 4000
# Long enough that prefill of the whole crowd is over before the first of it is done.
ANSWER, FULL_ANSWER = 100, 160
# The byte budget is what this many requests take in stock SGLang.
STOCK_REQUESTS = 3
CROWD = 8
# Of a token: K and V of 24 heads of 64 values of 4 bytes.
STOCK_BYTES = 24 * 2 * 64 * 4


@dataclass(frozen=True)
class Sizes:
    """Tokens of a prompt, of its answer, and of both with some air."""

    length: int
    answer: int

    @property
    def context(self) -> int:
        return self.length + self.answer + 40

    @property
    def stock_tokens(self) -> int:
        """Tokens of the budget in stock SGLang."""
        return STOCK_REQUESTS * self.context


@pytest.fixture(scope="module")
def sizes(full: bool) -> Sizes:
    return Sizes(FULL_LENGTH, FULL_ANSWER) if full else Sizes(LENGTH, ANSWER)


@pytest.fixture(scope="module")
def server(sizes: Sizes) -> Iterator[Server]:
    """A server of the shipped map with a budget."""
    budget = sizes.stock_tokens * STOCK_BYTES
    # --max-total-tokens counts global slots; one that does not bind leaves the size to the budget.
    args = [f"--redknot-kv-budget={budget}", f"--redknot-context-length={sizes.context}", "--max-total-tokens=1000000"]
    with harness.launch(["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", *args]) as running:
        yield running


def test_a_finished_prefix_holds_at_most_45_percent_of_stock(server: Server, sizes: Sizes) -> None:
    server.flush()
    server.generate(noise(random.Random(1), sizes.length), 1)
    status = server.get("/redknot/status")
    held = sum(state["used"] * state["bytes_per_slot"] for state in status["classes"].values())
    tokens = status["classes"]["global"]["used"]
    assert tokens >= sizes.length
    assert held <= 0.45 * tokens * STOCK_BYTES, f"{held / tokens / STOCK_BYTES:.1%}"


def test_twice_the_requests_of_stock_in_the_same_bytes(server: Server, sizes: Sizes) -> None:
    server.flush()
    classes = server.get("/redknot/status")["classes"].values()
    assert sum(state["slots"] * state["bytes_per_slot"] for state in classes) <= sizes.stock_tokens * STOCK_BYTES
    redknot = _most_at_once(server, sizes)
    with harness.launch([f"--max-total-tokens={sizes.stock_tokens}"]) as other:
        stock = _most_at_once(other, sizes)
    assert 1 <= stock <= STOCK_REQUESTS
    assert redknot >= 2 * stock, f"{redknot} requests at once, stock {stock}"


def _most_at_once(server: Server, sizes: Sizes) -> int:
    """Most requests seen running at the same time while a crowd of them waits for room."""
    rng = random.Random(2)
    prompts = [noise(rng, sizes.length) for _ in range(CROWD)]
    seen: list[int] = []
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(server, seen, done))
    watcher.start()
    try:
        with ThreadPoolExecutor(CROWD) as pool:
            lengths = list(pool.map(lambda prompt: _answer_length(server, prompt, sizes.answer), prompts))
    finally:
        done.set()
        watcher.join()
    assert lengths == [sizes.answer] * CROWD
    return max(seen)


def _answer_length(server: Server, prompt: Sequence[int], answer: int) -> int:
    return len(server.generate(list(prompt), answer)["output_ids"])


def _watch(server: Server, seen: list[int], done: threading.Event) -> None:
    while not done.wait(0.3):
        loads = server.get("/v1/loads?include=core")["loads"]
        seen.append(sum(load["num_running_reqs"] for load in loads))
