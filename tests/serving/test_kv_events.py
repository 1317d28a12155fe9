# SPDX-License-Identifier: Apache-2.0
"""`--kv-events-config`: what a subscriber hears over ZMQ of a real server is what the next request finds in its cache."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import requests
import zmq
from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from redknot_sglang.measure.launch import reserved_port
from tests.radix.test_events import hashes
from tests.serving import harness
from tests.serving.harness import Server
from tests.serving.prompts import noise
from tests.serving.segmented import SegmentedRequest

pytestmark = pytest.mark.serving


class Subscriber:
    """Hears a server's events. blocks: hashes of the blocks that it has. flushes: how often all were gone."""

    def __init__(self, url: str) -> None:
        self._socket: Any = zmq.Context.instance().socket(zmq.SUB)
        self._socket.connect(url)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"kv")
        self._decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        self.blocks: dict[int, int] = {}
        self.flushes = 0

    def close(self) -> None:
        self._socket.close()

    def hear(self) -> None:
        """Take what has come."""
        while self._socket.poll(0):
            topic, _, payload = self._socket.recv_multipart()
            assert topic == b"kv"
            for event in self._decoder.decode(payload).events:
                if isinstance(event, AllBlocksCleared):
                    self.blocks.clear()
                    self.flushes += 1
                elif isinstance(event, BlockRemoved):
                    for block in event.block_hashes:
                        del self.blocks[block]
                else:
                    assert isinstance(event, BlockStored)
                    assert event.parent_block_hash is None or event.parent_block_hash in self.blocks
                    self.blocks.update(zip(event.block_hashes, event.token_ids, strict=True))

    def hear_until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not is_so():
            assert time.monotonic() < end, "it was not told"
            time.sleep(0.05)
            self.hear()

    def matched(self, prompt: list[int], namespace: str | None = None) -> int:
        """Tokens of a prompt's beginning that the server is known to have."""
        found = [block in self.blocks for block in hashes(prompt, namespace)]
        return found.index(False) if False in found else len(found)


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Server, Subscriber]]:
    with reserved_port() as free:
        port = free
    config = {"publisher": "zmq", "endpoint": f"tcp://*:{port}", "topic": "kv"}
    flags = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", f"--kv-events-config={json.dumps(config)}"]
    with harness.launch([*flags, "--max-total-tokens=6000"]) as server:
        subscriber = Subscriber(f"tcp://127.0.0.1:{port}")
        rng, before = random.Random("hello"), subscriber.blocks.copy()
        # Who subscribes hears only what comes afterwards, and being connected takes a moment.
        while subscriber.blocks == before:
            server.generate(noise(rng, 20), 1)
            time.sleep(0.2)
            subscriber.hear()
        # What was told before that is forgotten.
        server.flush()
        subscriber.hear_until(lambda: subscriber.flushes > 0)
        yield server, subscriber
        subscriber.close()


@pytest.mark.parametrize("tenant", [None, "one", "two"])
def test_the_next_request_finds_what_was_told(told: tuple[Server, Subscriber], tenant: str | None) -> None:
    server, subscriber = told
    # The same prompt for all tenants.
    prompt = noise(random.Random("prompt"), 600)
    assert subscriber.matched(prompt, tenant) == 0
    named = {} if tenant is None else {"extra_key": tenant}
    first = server.generate(prompt, 4, **named)
    subscriber.hear_until(lambda: subscriber.matched(prompt, tenant) == len(prompt))
    assert first["meta_info"]["cached_tokens"] == 0
    longer = prompt + noise(random.Random("more"), 50)
    assert server.generate(longer, 1, **named)["meta_info"]["cached_tokens"] == 600
    subscriber.hear_until(lambda: subscriber.matched(longer, tenant) == len(longer))


def test_a_document_is_told_as_a_prompt_and_the_prompt_made_of_it_is_not(told: tuple[Server, Subscriber]) -> None:
    server, subscriber = told
    rng = random.Random("document")
    document, lead = noise(rng, 300), noise(rng, 8)
    request = SegmentedRequest([*lead, *document, *noise(rng, 20)], [8, 308], "none")
    server.generate(request.prompt, 2, sampling_params={"custom_params": request.params})
    subscriber.hear_until(lambda: subscriber.matched(document) == 300)
    assert subscriber.matched(request.prompt) == 0
    # It was computed alone, from the first position on.
    assert server.generate(document + noise(rng, 9), 1)["meta_info"]["cached_tokens"] == 300


def test_what_is_evicted_is_taken_back(told: tuple[Server, Subscriber]) -> None:
    server, subscriber = told
    rng = random.Random("evicted")
    prompt = noise(rng, 500)
    server.generate(prompt, 1)
    subscriber.hear_until(lambda: subscriber.matched(prompt) == 500)
    for _ in range(12):
        server.generate(noise(rng, 700), 1)
    subscriber.hear_until(lambda: subscriber.matched(prompt) < 500)
    promised = subscriber.matched(prompt)
    cached = server.generate(prompt + noise(rng, 5), 1)["meta_info"]["cached_tokens"]
    assert cached == promised


def test_a_flush_is_told(told: tuple[Server, Subscriber]) -> None:
    server, subscriber = told
    before = subscriber.flushes
    server.generate(noise(random.Random("flushed"), 50), 1)
    server.flush()
    subscriber.hear_until(lambda: subscriber.flushes > before)
    assert not subscriber.blocks


def test_the_server_says_where_it_tells(told: tuple[Server, Subscriber]) -> None:
    server, _ = told
    found: dict[str, Any] = requests.get(server.url + "/get_server_info", timeout=60).json()
    assert '"topic": "kv"' in found["kv_events_config"]
