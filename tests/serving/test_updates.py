# SPDX-License-Identifier: Apache-2.0
"""Weight updates, flushes and queue limits while the scheduler computes segments of its own accord."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load_file, save_file

from tests.serving import harness
from tests.serving.conversations import check_no_leak

pytestmark = pytest.mark.serving

FLAGS = [
    "--redknot",
    f"--redknot-head-map={harness.HEAD_MAP}",
    "--redknot-segment-length=300",
    "--chunked-prefill-size=64",
    "--max-queued-requests=4",
    "--enable-metrics",
]
POLICIES = ("blend:0.1", "boundary:16", "none")


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with rows of two matrices shuffled: those that probes of `blend` are made from."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(harness.MODEL, folder, ignore=shutil.ignore_patterns("*certificate*"))
    weights = load_file(folder / "model.safetensors")
    shuffle = torch.Generator().manual_seed(0)
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.2.self_attn.v_proj.weight"):
        weights[name] = weights[name][torch.randperm(len(weights[name]), generator=shuffle)].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[harness.Server]:
    with harness.launch(FLAGS) as running:
        yield running
        check_no_leak(running)


def _noise(seed: str, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 2000) for _ in range(length)]


def _request(seed: str, count: int, length: int, policy: str) -> dict[str, Any]:
    """Body of a segmented request of `count` documents."""
    prompt, offsets = _noise(f"{seed} lead", 10), list[int]()
    for i in range(count):
        offsets += [len(prompt), len(prompt) + length]
        prompt += _noise(f"{seed} {i}", length)
    params = {"redknot_segments": offsets, "redknot_repair": policy}
    sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True, "custom_params": params}
    return {"input_ids": prompt + _noise(f"{seed} tail", 8), "sampling_params": sampling, "return_logprob": True}


def _ask(server: harness.Server, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post("/generate", body)
    answer.raise_for_status()
    return dict(answer.json())


def _update(server: harness.Server, folder: Path) -> None:
    answer = server.post("/update_weights_from_disk", {"model_path": str(folder)})
    assert answer.status_code == 200 and answer.json()["success"], answer.text


def _abort_midway(server: harness.Server, name: str) -> None:
    """Have a client ask for twelve documents that nobody has computed, and abort it while the third is computed."""
    body = {**_request(name, 12, 600, "boundary:16"), "rid": name}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.post, "/generate", body)
        time.sleep(0.3)
        server.post("/abort_request", {"rid": name}).raise_for_status()
        assert asked.result().json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_an_abort_ends_what_only_that_request_wanted(server: harness.Server) -> None:
    _abort_midway(server, "flushed")
    # Without a timeout of its own: as most clients send it.
    answer = server.post("/flush_cache", {})
    assert answer.status_code == 200, answer.text
    # Computing the rest of the documents would take dozens of passes.
    used = server.get("/redknot/status")["classes"]["global"]["used"]
    assert used == 0


def test_a_weight_update_right_after_an_abort(server: harness.Server) -> None:
    _abort_midway(server, "updated")
    _update(server, harness.MODEL)
    assert len(_ask(server, _request("alive", 2, 100, "none"))["output_ids"]) == 4


def test_what_another_request_wants_too_is_computed_in_spite_of_an_abort(server: harness.Server) -> None:
    server.flush()
    body = _request("shared", 6, 300, "boundary:16")
    with ThreadPoolExecutor(2) as pool:
        gone = pool.submit(server.post, "/generate", {**body, "rid": "gone"})
        stays = pool.submit(_ask, server, body)
        time.sleep(0.3)
        server.post("/abort_request", {"rid": "gone"})
        assert gone.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
    report = stays.result()["meta_info"]["redknot"]
    assert report["segments"] == 6 and stays.result()["meta_info"]["finish_reason"]["type"] == "length"


def test_a_flush_right_after_each_answer(server: harness.Server) -> None:
    statuses = []
    for i in range(12):
        _ask(server, _request(f"flush {i}", 2, 40, POLICIES[i % 3]))
        statuses.append(server.post("/flush_cache", {}).status_code)
    assert statuses == [200] * 12


def test_a_flush_is_refused_while_a_client_waits(server: harness.Server) -> None:
    body = _request("waits", 12, 600, "boundary:16")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_ask, server, body)
        time.sleep(0.3)
        status = server.post("/flush_cache", {}).status_code
        asked.result()
    assert status == 400


def test_segments_do_not_fill_the_queue(server: harness.Server) -> None:
    server.flush()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.post, "/generate", _request("eight", 8, 300, "boundary:16"))
        time.sleep(0.2)
        second = pool.submit(server.post, "/generate", _request("beside", 1, 20, "none"))
        assert first.result().status_code == 200 and second.result().status_code == 200, second.result().text
    segments = [_noise(f"ahead {i}", 100) for i in range(20)]
    answer = server.post("/redknot/segments", {"segments": segments})
    assert answer.status_code == 200 and [entry["new"] for entry in answer.json()] == [True] * 20


def test_clients_still_fill_the_queue(server: harness.Server) -> None:
    bodies = [_request(f"crowd {i}", 3, 600, "boundary:16") for i in range(30)]
    with ThreadPoolExecutor(30) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda body: server.post("/generate", body), bodies)]
    assert 503 in statuses and 200 in statuses and set(statuses) == {200, 503}


def test_an_aborted_preload_does_not_say_that_it_computed(server: harness.Server) -> None:
    segments = [_noise(f"aborted {i}", 1500) for i in range(6)]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.post, "/redknot/segments", {"segments": segments})
        time.sleep(0.4)
        server.post("/abort_request", {"abort_all": True})
        answer = asked.result()
    assert answer.status_code == 400 and "was not computed" in answer.json()["error"]["message"]
    resident = [entry["resident_tokens"] for entry in server.get("/redknot/segments") if entry["tokens"] == 1500]
    assert len(resident) == 6 and min(resident) < 1500


def test_new_weights_are_followed(server: harness.Server, other_weights: Path) -> None:
    bodies = [_request(f"weights {i}", 3, 200, policy) for i in range(3) for policy in POLICIES]
    _update(server, harness.MODEL)
    before = [_ask(server, body) for body in bodies]
    _update(server, other_weights)
    after = [_ask(server, body) for body in bodies]
    with harness.launch([*FLAGS, f"--model-path={other_weights}"]) as fresh:
        expected = [_ask(fresh, body) for body in bodies]
    for old, new, right in zip(before, after, expected, strict=True):
        mine, theirs = ([entry[0] for entry in x["meta_info"]["output_token_logprobs"]] for x in (new, right))
        assert new["output_ids"] == right["output_ids"] and mine == pytest.approx(theirs, abs=1e-4)
        assert not new["meta_info"]["redknot"]["certified"]
        assert old["meta_info"]["output_token_logprobs"] != new["meta_info"]["output_token_logprobs"]


@pytest.mark.pinned
def test_after_an_update_nothing_says_certified() -> None:
    args = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--enable-metrics"]
    with harness.launch(args, certified=True) as running:
        body = _request("certified", 2, 100, "blend:0.08")
        assert _ask(running, body)["meta_info"]["redknot"]["certified"]
        certified = 'redknot:certified{certificate="'
        shown = [line for line in _metrics(running) if line.startswith(certified)]
        assert [line.rsplit(" ", 1)[1] for line in shown] == ["1.0"]
        _update(running, harness.MODEL)
        status = running.get("/redknot/status")["certificate"]
        assert not status["certified"] and status["policies"] == [] and "updated" in status["reason"]
        # What is not certified is refused from now on, as it would have been at start.
        answer = running.post("/generate", body)
        assert answer.status_code == 400 and "not certified" in answer.json()["error"]["message"]
        exact = running.generate(_noise("exact", 20), 2)
        assert not exact["meta_info"]["redknot"]["certified"]
        shown = [line for line in _metrics(running) if line.startswith(certified)]
        assert {line.rsplit(" ", 1)[1] for line in shown} == {"0.0"}


def _metrics(server: harness.Server) -> list[str]:
    return requests.get(server.url + "/metrics", timeout=30).text.splitlines()
