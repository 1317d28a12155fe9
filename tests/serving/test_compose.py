# SPDX-License-Identifier: Apache-2.0
"""compose.yaml: store, two servers and router come up together, and the servers share what they compute.

No container runtime is needed: its services run as processes (tests/serving/compose.py). The image itself is not built here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from redknot_sglang.config import DEFAULT_SEPARATOR
from tests.serving import compose, harness
from tests.serving.prompts import noise, tokenizer

pytestmark = [pytest.mark.serving, pytest.mark.pinned]

FILE = harness.ROOT / "compose.yaml"
Addresses = dict[tuple[str, int], str]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Iterator[Addresses]:
    if not harness.ON_CPU:
        pytest.skip("the file is for machines without a GPU")
    with compose.up(FILE, tmp_path_factory.mktemp("compose"), forked=not full) as addresses:
        yield addresses


def chat(url: str, document: str, question: str) -> dict[str, Any]:
    """The answer of an OpenAI chat about a document, and the server's report."""
    content = DEFAULT_SEPARATOR.join(["", document, question])
    body: dict[str, Any] = {
        "model": "default",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 4,
        "temperature": 0,
        "return_cached_tokens_details": True,
    }
    answer = requests.post(url + "/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def text_of(seed: str) -> str:
    return str(tokenizer().decode(noise(random.Random(seed), 300)))


def stored(url: str) -> dict[str, Any]:
    return dict(requests.get(url + "/redknot/status", timeout=60).json()["tiers"]["store"])


def test_a_chat_is_answered_through_the_router(services: Addresses) -> None:
    found = chat(services["router", 8000], text_of("chat"), "what is it?")
    assert found["choices"][0]["message"]["content"]
    assert found["usage"]["prompt_tokens"] > 300
    states = requests.get(services["router", 8000] + "/redknot/status", timeout=60).json()["router"]["servers"]
    assert len(states) == 2 and all(state["up"] for state in states.values())
    assert sum(state["requests"] for state in states.values()) == 1


def test_the_router_sends_a_document_where_it_is(services: Addresses) -> None:
    router, document = services["router", 8000], text_of("again")
    before = _requests(router)
    for number in range(3):
        chat(router, document, f"question {number}")
    gained = [after - earlier for after, earlier in zip(_requests(router), before, strict=True)]
    assert sorted(gained) == [0, 3]


def test_the_second_server_finds_a_document_in_the_store(services: Addresses) -> None:
    first, second, document = services["server-1", 30000], services["server-2", 30000], text_of("shared")
    answer = chat(first, document, "what is it?")
    end = time.monotonic() + 30
    while any(stored(first)["pending"].values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    before = stored(second)["tokens"]
    again = chat(second, document, "what is it?")
    assert stored(second)["tokens"] - before >= 300
    assert again["choices"][0]["message"] == answer["choices"][0]["message"]


def _requests(router: str) -> list[int]:
    states = requests.get(router + "/redknot/status", timeout=60).json()["router"]["servers"]
    return [state["requests"] for _, state in sorted(states.items())]
