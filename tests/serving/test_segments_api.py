# SPDX-License-Identifier: Apache-2.0
"""Segments computed ahead of time: `/redknot/segments` of one real server."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from redknot_sglang.config import DEFAULT_SEPARATOR
from redknot_sglang.serve.segments import AT_ONCE
from tests.serving import harness
from tests.serving.conversations import check_no_leak, settle
from tests.serving.prompts import noise, text, tokenizer
from tests.serving.segmented import SMALL, SMALL_POOL
from tests.serving.shared import SharedServers

pytestmark = pytest.mark.serving

PATH = "/redknot/segments"


@pytest.fixture
def server(servers: SharedServers) -> harness.Server:
    return servers.get(*SMALL)


def preload(server: harness.Server, *segments: str | list[int], **fields: Any) -> list[dict[str, Any]]:
    answer = server.post(PATH, {"segments": segments, **fields})
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def forget(server: harness.Server, query: str = "", body: Any = None) -> list[dict[str, Any]]:
    answer = requests.delete(server.url + PATH + query, json=body, timeout=harness.REQUEST_TIMEOUT)
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def computed(server: harness.Server, document: list[int], policy: str, before: int = 50, **fields: Any) -> int:
    """Rows that a request computes outside `document`, which stands behind `before` tokens, and in it: the latter."""
    rng = random.Random(f"{document} {before}")
    prompt = noise(rng, before) + document + noise(rng, 20)
    params = {"redknot_segments": [before, before + len(document)], "redknot_repair": policy}
    report = server.generate(prompt, 2, sampling_params={"custom_params": params}, **fields)["meta_info"]["redknot"]
    assert report["computed_tokens"] + report["reused_tokens"] == len(prompt)
    return int(report["computed_tokens"]) - before - 20


def test_a_second_time_nothing_is_new(server: harness.Server) -> None:
    rng = random.Random("idempotent")
    documents = [noise(rng, length) for length in (300, 1, 129, 700)]
    first = preload(server, documents[0], documents[1], [], documents[2], documents[0], "")
    assert [entry["tokens"] for entry in first] == [300, 1, 0, 129, 300, 0]
    assert [entry["new"] for entry in first] == [True, True, False, True, False, False]
    again = preload(server, *documents)
    assert [entry["new"] for entry in again] == [False, False, False, True]
    assert preload(server) == []
    assert [entry["new"] for entry in preload(server, *documents, repair="blend:0.9")] == [False] * 4
    assert [entry["new"] for entry in preload(server, *documents, repair="none")] == [True] * 4
    assert [entry["new"] for entry in preload(server, *documents, repair="boundary:3")] == [False] * 4


def test_requests_at_the_same_time_have_one_result(server: harness.Server) -> None:
    documents = [noise(random.Random(f"at once {number}"), 200) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for repair in ("blend:0.05", "none"):
            list(pool.map(lambda _: preload(server, *documents, repair=repair), range(4)))  # noqa: B023
    assert len(server.get(PATH)) == 16
    assert all(entry["resident_tokens"] == 200 for entry in server.get(PATH))


@pytest.mark.parametrize(
    ("preloaded", "policy", "rows"),
    [
        ("blend:0.05", "blend:0.05", (1, 15)),
        ("blend:0.05", "blend:0.1", (1, 30)),
        ("boundary:16", "none", (0, 0)),
        ("none", "boundary:16", (16, 16)),
        ("none", "blend:0.05", (300, 300)),
        ("blend:0.05", "none", (300, 300)),
    ],
)
def test_a_later_request_computes_only_what_it_repairs(
    server: harness.Server, preloaded: str, policy: str, rows: tuple[int, int]
) -> None:
    document = noise(random.Random(f"reuse {preloaded} {policy}"), 300)
    preload(server, document, repair=preloaded)
    assert rows[0] <= computed(server, document, policy, before=50) <= rows[1]
    repaired = (0, 15) if rows[0] == 300 else rows
    assert repaired[0] <= computed(server, document, policy, before=7) <= repaired[1], "at another position"


def test_a_preloaded_segment_gives_the_answer_of_one_that_was_not(server: harness.Server) -> None:
    rng = random.Random("answer")
    document = noise(rng, 400)
    prompt = noise(rng, 30) + document + noise(rng, 30)
    for policy in ("blend:0.05", "boundary:16"):
        params = {"redknot_segments": [30, 430], "redknot_repair": policy}
        answers = []
        for warm in (False, True):
            server.flush()
            if warm:
                preload(server, document, repair=policy)
            answers.append(server.generate(prompt, 8, sampling_params={"custom_params": params})["output_ids"])
        assert answers[0] == answers[1]


def test_text_is_what_separators_make_of_it(server: harness.Server) -> None:
    words = str(tokenizer().decode(text(random.Random("text")), skip_special_tokens=True))
    documents = [words[40:400], " " + words[400:700], words[700:760] + "\n\n"]
    tokens = [entry["tokens"] for entry in preload(server, *documents, repair="none")]
    prompt = DEFAULT_SEPARATOR.join([words[:40], *reversed(documents), words[760:800]])
    params = {"redknot_mode": "segmented", "redknot_repair": "none"}
    report = server.generate(prompt, 2, sampling_params={"custom_params": params})["meta_info"]["redknot"]
    assert report["segments"] == 3 and report["reused_tokens"] == sum(tokens)


def test_tenants_do_not_share(server: harness.Server) -> None:
    document = noise(random.Random("tenants"), 300)
    for policy in ("blend:0.05", "boundary:16"):
        assert preload(server, document, extra_key="a", repair=policy)[0]["new"]
        assert computed(server, document, policy, extra_key="b") == 300
        assert computed(server, document, policy) == 300
        assert computed(server, document, policy, extra_key="a") <= 16
        assert not preload(server, document, extra_key="b", repair=policy)[0]["new"]
    assert {entry["extra_key"] for entry in server.get(PATH)} == {"a", "b"}


def test_the_list_shows_what_is_left_of_each(server: harness.Server) -> None:
    documents = [noise(random.Random(f"list {number}"), 300 + number) for number in range(3)]
    preload(server, documents[0])
    preload(server, *documents[1:], extra_key="t", repair="boundary:16")
    listed = server.get(PATH)
    assert [(entry["tokens"], entry["extra_key"], entry["repair"]) for entry in listed] == [
        (300, None, "blend:0.08"),
        (301, "t", "boundary:16"),
        (302, "t", "boundary:16"),
    ]
    assert [entry["resident_tokens"] for entry in listed] == [300, 301, 302]
    assert len({entry["id"] for entry in listed}) == 3
    server.flush()
    assert [entry["resident_tokens"] for entry in server.get(PATH)] == [0, 0, 0]
    assert preload(server, documents[0])[0]["new"]
    after = server.get(PATH)
    assert [entry["id"] for entry in after] == [listed[i]["id"] for i in (1, 2, 0)]
    assert [entry["resident_tokens"] for entry in after] == [0, 0, 300]


@pytest.mark.parametrize("policy", ["blend:0.05", "none"])
def test_traffic_may_push_segments_out(server: harness.Server, policy: str) -> None:
    document = noise(random.Random("evicted"), 300)
    preload(server, document, repair=policy)
    for number in range(6):
        server.generate(noise(random.Random(f"traffic {number}"), SMALL_POOL // 3), 1)
    assert server.get(PATH)[0]["resident_tokens"] == 0
    assert preload(server, document, repair=policy)[0]["new"]
    assert computed(server, document, policy) <= 15


@pytest.mark.parametrize("policy", ["blend:0.05", "none"])
def test_forgetting_frees_what_nobody_else_needs(server: harness.Server, policy: str) -> None:
    rng = random.Random(f"forget {policy}")
    long = noise(rng, 500)
    other = noise(rng, 200)
    preload(server, long, long[:300], other, repair=policy)
    ids = {entry["tokens"]: entry["id"] for entry in server.get(PATH)}
    used = server.get("/redknot/status")["classes"]["global"]["used"]
    assert used == 700
    assert forget(server, body={"ids": [ids[500], ids[500]]}) == [{"id": ids[500], "freed_tokens": 200}]
    assert [entry["resident_tokens"] for entry in server.get(PATH)] == [300, 200]
    assert forget(server, f"?id={ids[200]}") == [{"id": ids[200], "freed_tokens": 200}]
    assert server.get("/redknot/status")["classes"]["global"]["used"] == 300
    assert forget(server, body={"ids": []}) == []
    assert forget(server) == [{"id": ids[300], "freed_tokens": 300}]
    assert server.get(PATH) == [] == forget(server)
    assert all(state["used"] == 0 for state in server.get("/redknot/status")["classes"].values())
    assert preload(server, other, repair=policy)[0]["new"]


def test_what_a_running_request_holds_stays(server: harness.Server) -> None:
    document = noise(random.Random("running"), 300)
    preload(server, document, repair="none")
    body: Any = {
        "input_ids": document + [500],
        "sampling_params": {"max_new_tokens": 1500, "temperature": 0, "ignore_eos": True},
        "stream": True,
    }
    with requests.post(server.url + "/generate", json=body, stream=True, timeout=harness.REQUEST_TIMEOUT) as stream:
        next(stream.iter_lines())
        assert forget(server)[0]["freed_tokens"] == 0


# Fields of the body, and what the answer must name.
BAD: dict[str, tuple[Any, str]] = {
    "no object": (["x"], "JSON object"),
    "no segments": ({}, "segments must be a list"),
    "one text": ({"segments": "text"}, "segments must be a list"),
    "number": ({"segments": ["x", 5]}, "segment 1 must be text or a list of token ids"),
    "fractions": ({"segments": [[1.5]]}, "segment 0 must be text or a list of token ids"),
    "no such token": ({"segments": [[1, 99999]]}, "token id 99999"),
    "negative token": ({"segments": [[-1]]}, "token id -1"),
    "separator": ({"segments": [f"a{DEFAULT_SEPARATOR}b"]}, "separator"),
    "special token": ({"segments": ["a", "b<|end|>"]}, "segment 1 has the special token"),
    "lead": ({"segments": ["a"], "lead": "b"}, "--redknot-segment-lead lead"),
    "unknown field": ({"segments": ["a"], "leed": "b"}, "field leed is not known"),
    "extra_key": ({"segments": ["a"], "extra_key": 5}, "extra_key must be text"),
    "half a character": ({"segments": ["a\ud800"]}, "the body is not JSON"),
    "unknown policy": ({"segments": ["a"], "repair": "magic"}, "use one of none, boundary:K"),
    "longer than the context": ({"segments": [[400] * 9000]}, "split it"),
    "longer than the local pool": ({"segments": [[400] * 3500]}, "local KV slots"),
    "more than the pool": ({"segments": [[n] * 700 for n in range(400, 410)]}, "send fewer at a time"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies_are_a_400_that_says_what_to_change(server: harness.Server, case: str) -> None:
    body, names = BAD[case]
    answer = server.post(PATH, body)
    assert answer.status_code == 400, answer.text
    assert names in answer.json()["error"]["message"], answer.text
    assert server.get(PATH) == []


def test_bad_deletions_are_a_400(server: harness.Server) -> None:
    preload(server, [400] * 50)
    bodies: list[tuple[str, Any, str]] = [
        ("?id=abc", None, "no segment 'abc' is listed"),
        ("", {"id": "abc"}, "?id="),
        ("", {"ids": "abc"}, "ids must be a list"),
        ("?id=abc", {"ids": []}, "?id="),
    ]
    for query, body, names in bodies:
        answer = requests.delete(server.url + PATH + query, json=body, timeout=harness.REQUEST_TIMEOUT)
        assert answer.status_code == 400 and names in answer.json()["error"]["message"], answer.text
    broken = requests.post(server.url + PATH, data="{", timeout=harness.REQUEST_TIMEOUT)
    assert broken.status_code == 400 and "not JSON" in broken.json()["error"]["message"]
    assert len(server.get(PATH)) == 1


def test_a_client_cannot_pretend_to_preload(server: harness.Server) -> None:
    params = {"max_new_tokens": 1, "custom_params": {"redknot_whole": True}}
    answer = server.post("/generate", {"input_ids": [400] * 9, "sampling_params": params, "redknot_resolved": True})
    assert answer.status_code == 400 and "redknot_whole not known" in answer.text


def test_hanging_up_loses_nothing(server: harness.Server) -> None:
    """Nothing is begun for a client that has left, and whoever asks next gets it all."""
    rng = random.Random("hang up")
    for timeout in (0.02, 0.1):
        # More than are computed at a time: the last ones have not begun when the client leaves.
        documents = [noise(rng, 20) for _ in range(AT_ONCE + 46)]
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(server.url + PATH, json={"segments": documents}, timeout=(5, timeout))
        # The server looks for the client every second.
        time.sleep(1.5)
        settle(server)
        assert min(entry["resident_tokens"] for entry in server.get(PATH)) == 0
        assert [entry["tokens"] for entry in preload(server, *documents)] == [20] * len(documents)
        assert all(entry["resident_tokens"] == 20 for entry in server.get(PATH))
        forget(server)
        check_no_leak(server)
