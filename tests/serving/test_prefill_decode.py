# SPDX-License-Identifier: Apache-2.0
"""A prefill server and a decode server answer together as one server does, and send what decoding needs of each head class."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from redknot_sglang.heads import load_head_map
from redknot_sglang.placement.needed import needed_local, size_of
from tests.serving import apart, harness
from tests.serving.answers import agree
from tests.serving.apart import Pair, Request
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.maps import make_map, save_map
from tests.serving.prompts import mixed, noise, text
from tests.serving.segmented import SegmentedRequest, make_requests

pytestmark = [pytest.mark.serving, apart.needs_host_memory]

ANSWER = 12
# Answers that go past a window after the prompt, so that the decode server frees what it has received.
LONG_ANSWER = 180
TOLERANCE = 1e-4
HEADS = load_head_map(harness.HEAD_MAP)
FLAGS = (
    "--redknot",
    f"--redknot-head-map={harness.HEAD_MAP}",
    "--redknot-segment-length=100",
    "--chunked-prefill-size=128",
    "--max-total-tokens=12000",
    "--enable-metrics",
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with apart.launch_pair(*FLAGS) as running:
        yield running
        for server in (running.prefill, running.decode):
            check_no_leak(server)


@pytest.fixture(scope="module")
def single() -> Iterator[Server]:
    with harness.launch(FLAGS) as running:
        yield running


def make_prompts(rng: random.Random, count: int) -> list[list[int]]:
    """Of all lengths about sink, window and chunk, half of them with a beginning that an earlier one has."""
    lengths = (1, 2, 4, 5, 20, 127, 128, 129, 131, 132, 133, 250, 257, 400, 700, 1100)
    roots = [mixed(rng, 300), text(rng)]
    found = []
    for number in range(count):
        length = lengths[number % len(lengths)]
        found.append((rng.choice(roots) + noise(rng, length)) if number % 2 else mixed(rng, length))
    return found


def length_of(request: Request) -> int:
    return len(request.prompt if isinstance(request, SegmentedRequest) else request)


def check_both(pair: Pair) -> None:
    for server in (pair.prefill, pair.decode):
        check_no_leak(server)


def test_answers_are_those_of_one_server(pair: Pair, single: Server, full: bool) -> None:
    """Exact and segmented, few and many at once, cold and from the prefill server's cache."""
    rng = random.Random("apart")
    sent: list[Request] = [*make_prompts(rng, 50 if full else 16)]
    sent += make_requests(rng, 50 if full else 8, most=5, longest=300, limit=900)
    with ThreadPoolExecutor(4) as pool:
        expected = list(pool.map(lambda request: apart.alone(single, request, ANSWER), sent))
    rounds = {"cold": pair.ask_all(sent, ANSWER, at_once=1 if full else 8)}
    rounds["warm"] = pair.ask_all(sent, ANSWER, at_once=8 if full else 3)
    check_both(pair)
    for answers in rounds.values():
        for answer, reference in zip(answers, expected, strict=True):
            agree(answer, reference, TOLERANCE)
    cached = {name: sum(answer.cached for answer in answers) for name, answers in rounds.items()}
    assert cached["warm"] > cached["cold"] > 0


def test_a_long_answer_keeps_its_sinks_and_frees_what_left_its_window(pair: Pair, single: Server) -> None:
    rng = random.Random("long answers")
    sent: list[Request] = [mixed(rng, length) for length in (3, 100, 600)]
    expected = [apart.alone(single, request, LONG_ANSWER) for request in sent]
    for answer, reference in zip(pair.ask_all(sent, LONG_ANSWER, at_once=3), expected, strict=True):
        agree(answer, reference, TOLERANCE)
    check_both(pair)


def test_only_what_decoding_needs_is_sent(pair: Pair) -> None:
    """Counted on both sides of the wire's beginning: in the status, in the metrics, and by arithmetic."""
    rng = random.Random("bytes")
    sent: list[Request] = [mixed(rng, 1), mixed(rng, 100), mixed(rng, 1000)]
    sent += make_requests(rng, 4, most=4, longest=300, limit=900)
    before = pair.prefill.get("/redknot/status")["transfer"]
    pair.ask_all(sent, 2, at_once=2)
    status = pair.prefill.get("/redknot/status")
    lengths = [length_of(request) for request in sent]
    counts = {"global": sum(lengths), "local": sum(size_of(needed_local(length, HEADS)) for length in lengths)}
    bytes_per_head = 2 * 64 * 4
    heads = {
        "global": sum(HEADS.num_global(layer) for layer in range(HEADS.num_layers)),
        "local": sum(HEADS.num_local(layer) for layer in range(HEADS.num_layers)),
    }
    after = status["transfer"]
    for name, count in counts.items():
        assert after["sent_tokens"][name] - before["sent_tokens"][name] == count
        assert after["sent_bytes"][name] - before["sent_bytes"][name] == count * heads[name] * bytes_per_head
    all_heads = HEADS.num_layers * HEADS.num_kv_heads * bytes_per_head
    assert after["stock_bytes"] - before["stock_bytes"] == counts["global"] * all_heads
    shown = requests.get(pair.prefill.url + "/metrics", timeout=harness.REQUEST_TIMEOUT).text
    measured = dict(line.rsplit(" ", 1) for line in shown.splitlines() if line.startswith("redknot:transfer_"))
    for name in counts:
        for what in ("tokens", "bytes"):
            label = f'redknot:transfer_{what}_total{{head_class="{name}"}}'
            assert float(measured[label]) == after[f"sent_{what}"][name]
    assert pair.decode.get("/redknot/status")["transfer"] is None


def test_each_server_reports_what_it_did(pair: Pair) -> None:
    rng = random.Random("reports")
    request = next(request for request in make_requests(rng, 8, 4, 300, 900) if request.policy == "boundary:16")
    for sent in (mixed(rng, 200), request):
        answer, prefilled, decoded = pair.ask(sent, ANSWER)
        assert prefilled["computed_rows"] > 0 and prefilled["flops"] > 0
        assert not {"computed_rows", "computed_tokens", "flops", "relocated_tokens"} & set(decoded)
        assert decoded["mode"] == prefilled["mode"] and decoded["cached_tokens"] == answer.cached
        assert decoded.get("policy") == prefilled.get("policy")


def test_segments_are_computed_ahead_of_time_on_the_prefill_server(pair: Pair, single: Server) -> None:
    rng = random.Random("ahead")
    document = noise(rng, 250)
    call = {"segments": [document], "repair": "boundary:16"}
    refused = pair.decode.post("/redknot/segments", call)
    assert refused.status_code == 400 and "send this call to the prefill server" in refused.text
    made = pair.prefill.post("/redknot/segments", call)
    assert made.json() == [{"tokens": 250, "new": True}], made.text
    request = SegmentedRequest([*noise(rng, 5), *document, *noise(rng, 20)], [5, 255], "boundary:16")
    answer, report, _ = pair.ask(request, ANSWER)
    agree(answer, apart.alone(single, request, ANSWER), TOLERANCE)
    assert report["relocated_tokens"] == 250 - 16
    check_both(pair)


def test_a_policy_that_shortens_the_prompt_is_refused_by_both(pair: Pair) -> None:
    rng = random.Random("question")
    request = SegmentedRequest(noise(rng, 60), [5, 20, 20, 40], "question:1")
    for response in pair.post(request, 4):
        assert response.status_code == 400 and "the decode server would not know which" in response.text


def test_prompts_that_differ_are_an_error_on_both_sides(pair: Pair) -> None:
    """SGLang sends what fits, and the answer would be made of half a prompt."""
    rng = random.Random("other prompts")
    meeting = {"bootstrap_host": apart.HOST, "bootstrap_port": pair.port, "bootstrap_room": 1 << 40}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pair.prefill.post, "/generate", {**apart.body_of(noise(rng, 300), 4), **meeting})
        second = pool.submit(pair.decode.post, "/generate", {**apart.body_of(noise(rng, 290), 4), **meeting})
    assert first.result().status_code == second.result().status_code == 500
    assert "send both the same prompt and options" in first.result().text
    check_both(pair)


def test_another_head_map_is_refused_with_the_reason(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
    """And does not end the decode server, nor the prefill server."""
    other = save_map(make_map(40, 4), tmp_path_factory.mktemp("other"))
    flags = [flag for flag in FLAGS if "head-map" not in flag]
    with apart.launch_all([*flags, f"--redknot-head-map={other}", *apart.role("decode", pair.port)]) as (decode,):
        meeting = {"bootstrap_host": apart.HOST, "bootstrap_port": pair.port, "bootstrap_room": 1 << 41}
        for _ in range(2):
            refused = decode.post("/generate", {**apart.body_of(list(range(400, 450)), 4), **meeting})
            assert refused.status_code == 500 and "start both with the same model" in refused.text
        check_no_leak(decode)
    check_both(pair)
