# SPDX-License-Identifier: Apache-2.0
"""The host tier in a real server: what comes back from host memory gives the answers of an empty cache.

The memory check counts every slot of the device after every step (harness.py).
"""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests as http

from tests.serving import harness
from tests.serving.answers import Answer, ask, read_answer
from tests.serving.conversations import settle
from tests.serving.harness import Server
from tests.serving.maps import save_retrieval_map
from tests.serving.prompts import noise
from tests.serving.segmented import SegmentedRequest, ask_segmented
from tests.serving.shared import SharedServers
from tests.versions import needs_host_tier

pytestmark = [pytest.mark.serving, needs_host_tier]

ANSWER = 6
HIT_TOLERANCE = 1e-4
POOL = 3000
WINDOW, SINK = 128, 4
FLAGS = (
    "--redknot",
    "--redknot-segment-length=300",
    "--redknot-uncertified",
    "--chunked-prefill-size=128",
    f"--max-total-tokens={POOL}",
    "--enable-mixed-chunk",
    "--enable-metrics",
    "--enable-hierarchical-cache",
    "--hicache-ratio=8",
)


@pytest.fixture
def server(servers: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with a small pool and a host tier, of a map that all repair policies can be served with; its cache empty."""
    folder = tmp_path_factory.getbasetemp() / "host-tier"
    folder.mkdir(exist_ok=True)
    return servers.get(*FLAGS, f"--redknot-head-map={save_retrieval_map(folder)}")


def push_out(server: Server, rng: random.Random) -> None:
    """Fill the device with other prompts, so that what it held is on the host only.

    What is used often would stay where prompts come one after the other. Those that run at the same time need all of the device.
    """
    together = [noise(rng, POOL // 4 - 70) for _ in range(4)]
    with ThreadPoolExecutor(len(together)) as pool:
        list(pool.map(lambda prompt: server.generate(prompt, 60), together))
    settle(server)


def tiers(server: Server) -> dict[str, Any]:
    """What the status says of the tiers."""
    found: dict[str, Any] = server.get("/redknot/status")["tiers"]
    return found


def loaded(server: Server) -> dict[str, int]:
    """Tokens loaded from the host so far, by head class."""
    found: dict[str, int] = tiers(server)["copied_tokens"]["loaded_back"]
    return found


def same(got: Answer, cold: Answer) -> None:
    """The answers are one: every token, and log-probabilities but for rounding."""
    assert got.prompt == cold.prompt and got.tokens == cold.tokens
    assert got.logprobs == pytest.approx(cold.logprobs, abs=HIT_TOLERANCE)


def test_a_prefix_comes_back_by_head_class(server: Server) -> None:
    rng = random.Random("one")
    prompt = noise(rng, 600)
    cold = ask(server, prompt, ANSWER)
    push_out(server, rng)
    before = tiers(server)
    body = server.generate(prompt, ANSWER, return_logprob=True, top_logprobs_num=2)
    same(read_answer(prompt, body), cold)
    assert body["meta_info"]["cached_tokens_details"] == {"device": 0, "host": 599}
    after = tiers(server)
    # Of 599 tokens local heads see the sink and the window before the next row.
    moved = {"global": 599, "local": SINK + WINDOW - 1}
    assert {name: after["copied_tokens"]["loaded_back"][name] for name in moved} == {
        name: before["copied_tokens"]["loaded_back"][name] + tokens for name, tokens in moved.items()
    }
    assert after["loads"] == before["loads"] + 1
    assert after["load_seconds"] > before["load_seconds"]
    hits, earlier = after["hit_tokens"], before["hit_tokens"]
    assert {name: hits["host"][name] - earlier["host"][name] for name in moved} == moved
    assert hits["device"] == earlier["device"]


def test_loads_in_the_middle_of_a_batch(server: Server) -> None:
    """Conversations come back while others are computed and decoded."""
    rng = random.Random("batch")
    prompts = [noise(rng, rng.randrange(150, 500)) for _ in range(6)]
    prompts += [prompts[0][:140] + noise(rng, 200), prompts[1][:140] + noise(rng, 90)]
    cold = []
    for prompt in prompts:
        server.flush()
        cold.append(ask(server, prompt, ANSWER))
    for prompt in prompts:
        ask(server, prompt, ANSWER)
    push_out(server, rng)
    before = loaded(server)
    others = [noise(rng, 260) for _ in range(6)]
    with ThreadPoolExecutor(14) as pool:
        running = [pool.submit(server.generate, other, 60) for other in others]
        again = list(pool.map(lambda prompt: ask(server, prompt, ANSWER), prompts))
        assert all(len(other.result()["output_ids"]) == 60 for other in running)
    for answer, expected in zip(again, cold, strict=True):
        same(answer, expected)
    after = loaded(server)
    assert after["global"] > before["global"] + 1000
    assert after["local"] > before["local"]


def test_a_conversation_goes_on_from_the_host(server: Server) -> None:
    rng = random.Random("turns")
    prompt = noise(rng, 300)
    first = ask(server, prompt, 40)
    push_out(server, rng)
    more = prompt + first.tokens + noise(rng, 30)
    answer = ask(server, more, ANSWER)
    assert answer.cached >= 300 + 40 - 1
    server.flush()
    same(answer, ask(server, more, ANSWER))


def test_the_tail_at_a_branch_goes_to_the_host_when_it_is_made(server: Server) -> None:
    """The first request leaves none there, and what is backed up by then has no local KV."""
    rng = random.Random("branch")
    shared = noise(rng, 400)
    prompts = [shared + noise(rng, 200) for _ in range(4)]
    for prompt in prompts[:3]:
        ask(server, prompt, ANSWER)
    push_out(server, rng)
    answer = ask(server, prompts[3], ANSWER)
    assert answer.cached == 400
    server.flush()
    same(answer, ask(server, prompts[3], ANSWER))


@pytest.mark.parametrize("policy", ["none", "boundary:16", "blend:0.1", "question:1"])
def test_documents_come_back(server: Server, policy: str, full: bool) -> None:
    """A document that is on the host is not computed again, and the answer is the one from an empty cache."""
    rng = random.Random("documents")
    documents = [noise(rng, length) for length in (300, 220, 140)]
    orders = ((0, 1, 2), (2, 0, 1), (1, 2, 0))
    requests = [_request(rng, order, documents, policy) for order in (orders if full else orders[:2])]
    cold = []
    for request in requests:
        server.flush()
        cold.append(ask_segmented(server, request, ANSWER)[0])
    server.flush()
    ask_segmented(server, requests[0], ANSWER)
    for request, expected in zip(requests, cold, strict=True):
        push_out(server, rng)
        before, rows = loaded(server), isolated_rows(server)
        answer, _ = ask_segmented(server, request, ANSWER)
        same(answer, expected)
        after = loaded(server)
        assert after["global"] > before["global"]
        if policy in ("blend:0.1", "question:1"):
            # Such documents keep all their local KV.
            assert after["local"] - before["local"] > 220
        # Text that only this prompt has may be computed by itself, documents may not.
        assert isolated_rows(server) - rows < 140


def _request(rng: random.Random, order: tuple[int, ...], documents: list[list[int]], policy: str) -> SegmentedRequest:
    """The documents in this order, behind a lead and before a question, both of the same tokens for the same documents."""
    lead = [400 + token for token in range(7)]
    prompt, offsets = list(lead), list[int]()
    for number in order:
        offsets += [len(prompt), len(prompt) + len(documents[number])]
        prompt = prompt + documents[number]
    return SegmentedRequest(prompt + noise(rng, 20), offsets, policy)


def isolated_rows(server: Server) -> float:
    """Rows that isolated prefills have computed."""
    return metric(server, r'redknot:segment_rows_total\{.*kind="isolated".*\}')


def metric(server: Server, pattern: str) -> float:
    """Sum of the metrics whose name and labels match."""
    text = http.get(server.url + "/metrics", timeout=60).text
    return sum(float(value) for value in re.findall(f"^{pattern} (.*)$", text, re.MULTILINE))


def test_a_segmented_prompt_s_own_path_comes_back_from_its_second_visit_on(server: Server) -> None:
    rng = random.Random("own")
    documents = [noise(rng, length) for length in (200, 150)]
    request = _request(rng, (0, 1), documents, "boundary:16")
    cold = ask_segmented(server, request, ANSWER)[0]
    for _ in range(2):
        same(ask_segmented(server, request, ANSWER)[0], cold)
    push_out(server, rng)
    answer, report = ask_segmented(server, request, ANSWER)
    same(answer, cold)
    assert report["computed_tokens"] == 1 and report["relocated_tokens"] == 0


def test_no_tenant_hits_what_another_left_on_the_host(server: Server) -> None:
    rng = random.Random("tenants")
    prompt = noise(rng, 400)
    document = [noise(rng, 200)]
    request = _request(rng, (0,), document, "boundary:16")

    def answers(tenant: str) -> list[int]:
        params = {"sampling_params": {"custom_params": request.params}}
        plain = server.generate(prompt, 1, extra_key=tenant)["meta_info"]
        segmented = server.generate(request.prompt, 1, extra_key=tenant, **params)["meta_info"]
        return [plain["cached_tokens"], segmented["redknot"]["reused_tokens"]]

    assert answers("one") == [0, 0]
    push_out(server, rng)
    before = loaded(server)
    assert answers("two") == [0, 0]
    assert loaded(server) == before
    push_out(server, rng)
    plain, segmented = answers("one")
    assert plain == 399 and segmented > 150
    assert loaded(server)["global"] >= before["global"] + 399 + 150


def test_a_deleted_segment_is_gone_from_the_host(server: Server) -> None:
    rng = random.Random("deleted")
    document = noise(rng, 250)
    free = tiers(server)["host"]
    assert [state["used"] for state in free.values()] == [0, 0]
    answer = server.post("/redknot/segments", {"segments": [document], "repair": "boundary:16"})
    assert answer.status_code == 200, answer.text
    push_out(server, rng)
    (listed,) = server.get("/redknot/segments")
    assert listed["resident_tokens"] == 250
    before = tiers(server)["host"]
    answer = http.delete(server.url + "/redknot/segments", timeout=60)
    assert [entry["freed_tokens"] for entry in answer.json()] == [250]
    after = tiers(server)["host"]
    assert before["global"]["used"] - after["global"]["used"] == 250
    assert before["local"]["used"] - after["local"]["used"] == SINK + WINDOW
    server.flush()
    assert [state["used"] for state in tiers(server)["host"].values()] == [0, 0]


def test_metrics_say_what_the_status_says(server: Server) -> None:
    rng = random.Random("metrics")
    prompt = noise(rng, 500)
    ask(server, prompt, ANSWER)
    push_out(server, rng)
    ask(server, prompt, ANSWER)
    settle(server)
    status = tiers(server)
    for move in ("backed_up", "loaded_back"):
        for name in ("global", "local"):
            pattern = rf'redknot:tier_bytes_total\{{.*head_class="{name}".*move="{move}".*\}}'
            size = status["host"][name]["bytes_per_slot"]
            assert status["copied_bytes"][move][name] == status["copied_tokens"][move][name] * size
            assert metric(server, pattern) == status["copied_bytes"][move][name] > 0
    for move, tokens in status["evicted_tokens"].items():
        pattern = rf'redknot:tier_tokens_total\{{.*head_class="global".*move="{move}".*\}}'
        assert metric(server, pattern) == tokens["global"]
    assert metric(server, r"redknot:load_back_seconds_count(?:\{.*\})?") == status["loads"]
    pattern = r'redknot:tier_hit_tokens_total\{.*head_class="global".*tier="host".*\}'
    assert metric(server, pattern) == status["hit_tokens"]["host"]["global"] > 0


def test_a_host_tier_that_holds_no_request_is_refused_in_one_line() -> None:
    # The scheduler does it: only there it is known how many slots the device has.
    args = [
        "--redknot",
        f"--redknot-head-map={harness.HEAD_MAP}",
        "--enable-hierarchical-cache",
        "--hicache-ratio=0.01",
    ]
    code, log = harness.refused([*args, "--redknot-uncertified"])
    said = [line for line in log.splitlines() if "redknot: error:" in line]
    assert code == 1 and "given above" in said[-1], log
    assert "--hicache-ratio 0.01 cannot hold a single request" in said[0] and len(said) == 2
    assert "Traceback" not in log
