# SPDX-License-Identifier: Apache-2.0
"""Ways to ask for segments, requests that cannot be served, and clients that hang up."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from openai import OpenAI

from redknot_sglang.config import DEFAULT_SEPARATOR
from tests.serving import harness
from tests.serving.conversations import check_no_leak
from tests.serving.prompts import noise, text, tokenizer
from tests.serving.segmented import SMALL, SegmentedRequest, ask_segmented, make_documents, make_request
from tests.serving.shared import SharedServers

pytestmark = pytest.mark.serving


@pytest.fixture
def server(servers: SharedServers) -> harness.Server:
    return servers.get(*SMALL)


def _parts(seed: str) -> list[str]:
    """Lead, two documents and tail, as text."""
    rng = random.Random(seed)
    words = str(tokenizer().decode(text(rng) + text(rng), skip_special_tokens=True))
    return [words[:40], words[40:400], words[400:700], words[700:760]]


def _report(server: harness.Server, **body: Any) -> tuple[list[int], dict[str, Any]]:
    params = body.pop("custom_params")
    answer = server.generate(body.pop("prompt"), 4, sampling_params={"custom_params": params}, **body)
    return answer["output_ids"], answer["meta_info"]["redknot"]


def test_offsets_characters_and_separators_mean_the_same(server: harness.Server) -> None:
    parts = _parts("same")
    tokens = [tokenizer().encode(part, add_special_tokens=False) for part in parts]
    cuts = [sum(len(part) for part in tokens[:i]) for i in range(5)]
    ids = [token for part in tokens for token in part]
    chars = [sum(len(part) for part in parts[:i]) for i in range(5)]
    by_tokens = _report(server, prompt=ids, custom_params={"redknot_segments": [*cuts[1:3], *cuts[2:4]]})
    by_chars = _report(
        server, prompt="".join(parts), custom_params={"redknot_segment_chars": [*chars[1:3], *chars[2:4]]}
    )
    by_separators = _report(server, prompt=DEFAULT_SEPARATOR.join(parts), custom_params={"redknot_mode": "segmented"})
    assert by_tokens[1]["mode"] == "segmented" and by_tokens[1]["segments"] == 2
    assert by_tokens[0] == by_chars[0] == by_separators[0]
    for _, report in (by_chars, by_separators):
        assert report["segments"] == 2 and report["computed_tokens"] == 1, "the same path is in the tree already"


def test_exact_mode_ignores_separators_and_stays_exact(server: harness.Server) -> None:
    parts = _parts("exact")
    plain = server.generate([token for part in parts for token in tokenizer().encode(part)], 4)
    separated = server.generate(DEFAULT_SEPARATOR.join(parts), 4)
    assert separated["output_ids"] == plain["output_ids"]
    assert separated["meta_info"]["redknot"]["mode"] == "exact"


def test_openai_chat_needs_nothing_but_text(server: harness.Server) -> None:
    client = OpenAI(base_url=server.url + "/v1", api_key="none")
    lead, first, second, question = _parts("chat")

    def ask(*documents: str, **body: Any) -> Any:
        content = DEFAULT_SEPARATOR.join([lead, *documents, question])
        return client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": content}], max_tokens=4, temperature=0, **body
        )

    mode = {"custom_params": {"redknot_mode": "segmented", "redknot_repair": "boundary:16"}}
    cold = ask(first, second, extra_body=mode)
    swapped = ask(second, first, extra_body=mode)
    assert cold.usage.prompt_tokens == swapped.usage.prompt_tokens
    documents = sum(len(tokenizer().encode(part, add_special_tokens=False)) for part in (first, second))
    cached = swapped.usage.prompt_tokens_details.cached_tokens
    assert documents - 32 <= cached <= swapped.usage.prompt_tokens - 32


@pytest.mark.parametrize("policy", ["boundary:16", "blend:0.1"])
def test_a_salt_keeps_documents_apart(server: harness.Server, policy: str) -> None:
    """SGLang 0.5.17 makes it a part of `extra_key`; newer ones keep it beside that."""
    client = OpenAI(base_url=server.url + "/v1", api_key="none")
    lead, first, second, question = _parts(f"salt {policy}")

    def cached(*documents: str, salt: str | None) -> int:
        body = {"custom_params": {"redknot_mode": "segmented", "redknot_repair": policy}}
        given = {**body, "cache_salt": salt} if salt else body
        prompt = DEFAULT_SEPARATOR.join([lead, *documents, question])
        answer = client.completions.create(
            model="default", prompt=prompt, max_tokens=4, temperature=0, extra_body=given
        )
        details: Any = answer.usage and answer.usage.prompt_tokens_details
        # SGLang leaves it out where nothing was cached.
        return int(details.cached_tokens) if details else 0

    documents = sum(len(tokenizer().encode(part, add_special_tokens=False)) for part in (first, second))
    for salt in (None, "a", "b"):
        assert cached(first, second, salt=salt) == 0
        assert cached(second, first, salt=salt) > documents / 2
    check_no_leak(server)


# What is sent: prompt length, custom_params, further fields; and what the answer must name.
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "out of range": ({"redknot_segments": [0, 999]}, {}, "does not lie in the prompt"),
    "negative": ({"redknot_segments": [-1, 5]}, {}, "does not lie in the prompt"),
    "end before start": ({"redknot_segments": [9, 5]}, {}, "does not lie in the prompt"),
    "overlapping": ({"redknot_segments": [0, 50, 40, 60]}, {}, "without overlap"),
    "out of order": ({"redknot_segments": [50, 60, 0, 10]}, {}, "in order"),
    "odd": ({"redknot_segments": [0, 50, 60]}, {}, "a start and an end"),
    "not numbers": ({"redknot_segments": [0.5, 3.0]}, {}, "whole numbers"),
    "unknown policy": ({"redknot_segments": [0, 50], "redknot_repair": "magic"}, {}, "use one of none, boundary:K"),
    "unknown mode": ({"redknot_mode": "fast"}, {}, "exact, segmented"),
    "unknown option": ({"redknot_segment": [0, 5]}, {}, "redknot_segment not known"),
    "no separator": ({"redknot_mode": "segmented"}, {}, "names no segments"),
    "characters of tokens": ({"redknot_segment_chars": [0, 5]}, {}, "needs the prompt as text"),
    "isolated segments' namespace": ({}, {"extra_key": "\0redknot whole"}, "extra_key must not contain"),
    "input logprobs": (
        {"redknot_segments": [0, 50]},
        {"return_logprob": True, "logprob_start_len": 0},
        "the first position that is allowed is 50,",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_a_400_that_says_what_to_change(server: harness.Server, case: str) -> None:
    params, fields, names = BAD[case]
    prompt = list(range(400, 500))
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 2, "custom_params": params}, **fields}
    answer = server.post("/generate", body)
    assert answer.status_code == 400, answer.text
    assert names in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(
    ("prompt", "params", "names"),
    [
        (DEFAULT_SEPARATOR, {}, "separators only"),
        (f"some {DEFAULT_SEPARATOR} words in it", {"redknot_segment_chars": [0, 3]}, "use one of them"),
        (f"some {DEFAULT_SEPARATOR} words in it", {"redknot_segments": [0, 1]}, "use one of them"),
    ],
)
def test_separators_never_reach_the_model(
    server: harness.Server, prompt: str, params: dict[str, Any], names: str
) -> None:
    body = {"text": prompt, "sampling_params": {"max_new_tokens": 2, "custom_params": params}}
    answer = server.post("/generate", body)
    assert answer.status_code == 400 and names in answer.text, answer.text
    assert len(server.generate(list(range(400, 420)), 2)["output_ids"]) == 2


def test_segments_longer_than_the_pool_are_a_400_and_the_server_goes_on(server: harness.Server) -> None:
    rng = random.Random("long")
    request = SegmentedRequest(noise(rng, 3400), [0, 1700, 1700, 3390], "none")
    body = {"input_ids": request.prompt, "sampling_params": {"max_new_tokens": 4, "custom_params": request.params}}
    answer = server.post("/generate", body)
    assert answer.status_code == 400, answer.text
    assert "KV slots" in answer.text and "--max-total-tokens" in answer.text
    # The same prompt fits in exact mode, and fewer segments fit too.
    assert len(server.generate(request.prompt, 4)["output_ids"]) == 4
    fewer = SegmentedRequest(request.prompt, [0, 1700], "none")
    assert ask_segmented(server, fewer, 4)[1]["segments"] == 1


@pytest.mark.parametrize("policy", ["none", "blend:0.1"])
def test_a_prompt_longer_than_the_pool_is_a_400_and_the_server_goes_on(server: harness.Server, policy: str) -> None:
    # SGLang refuses it itself, inside the scheduler, and leaves one token of it.
    request = SegmentedRequest(noise(random.Random("longer"), 6500), [4, 3600, 3600, 6490], policy)
    body = {"input_ids": request.prompt, "sampling_params": {"max_new_tokens": 4, "custom_params": request.params}}
    answer = server.post("/generate", body)
    assert answer.status_code == 400 and "exceeds" in answer.text, answer.text
    assert len(server.generate(request.prompt[:200], 4)["output_ids"]) == 4


def test_prefill_mixed_with_decoding_answers_the_same(server: harness.Server) -> None:
    """Gather extends share batches with decoding rows; SGLang mixes them where nobody asks for log-probabilities."""
    rng = random.Random("mixed")
    documents = make_documents(rng, 4, 300)
    policies = ("boundary:4", "blend:0.1")
    requests_ = [make_request(rng, documents, policies[i % 2], 3, 700) for i in range(12)]

    def visit(request: SegmentedRequest) -> list[int]:
        sampling = {"custom_params": request.params}
        return list(server.generate(request.prompt, 24, sampling_params=sampling)["output_ids"])

    alone = [visit(request) for request in requests_]
    server.flush()
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(visit, requests_))
    assert together == alone


def test_several_answers_to_one_request(server: harness.Server) -> None:
    rng = random.Random("several")
    prompt = noise(rng, 200)
    params = {"redknot_segments": [20, 180]}
    one = server.generate(prompt, 4, sampling_params={"custom_params": params})["output_ids"]
    body = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True, "n": 2, "custom_params": params}
    both = server.post("/generate", {"input_ids": prompt, "sampling_params": body})
    assert both.status_code == 200, both.text
    assert [answer["output_ids"] for answer in both.json()] == [one, one]


@pytest.mark.parametrize("policy", ["boundary:16", "blend:0.1"])
def test_hanging_up_at_any_time_loses_nothing(server: harness.Server, policy: str) -> None:
    """Half of the clients leave while segments are computed, queued or relocated; the others want the same segments.

    Those who leave have asked for answers that would go on for much longer, and the server aborts all of them.
    """
    rng = random.Random("hang up")
    documents = make_documents(rng, 4, 700)
    requests_ = [make_request(rng, documents, policy, 4, 1500) for _ in range(16)]

    def visit(numbered: tuple[int, SegmentedRequest]) -> list[int] | None:
        number, request = numbered
        if number % 2:
            return ask_segmented(server, request, 4)[0].tokens
        sampling = {"max_new_tokens": 500, "ignore_eos": True, "custom_params": request.params}
        body: Any = {"input_ids": request.prompt, "sampling_params": sampling}
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(server.url + "/generate", json=body, timeout=(5, 0.05 + 0.1 * number))
        return None

    before = _aborted(server)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(visit, enumerate(requests_)))
    check_no_leak(server)
    assert _aborted(server) - before == len(requests_) // 2
    for answer, request in zip(answers, requests_, strict=True):
        if answer is not None:
            assert ask_segmented(server, request, 4)[0].tokens == answer


def _aborted(server: harness.Server) -> float:
    """Requests that the server has aborted while they were waiting or running."""
    text = requests.get(server.url + "/metrics", timeout=60).text
    return sum(map(float, re.findall(r"^sglang:num_aborted_requests_total\{.*\} (\S+)$", text, re.MULTILINE)))
