# SPDX-License-Identifier: Apache-2.0
"""What a server shows of RedKnot, and the ways to switch it on other than flags."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from redknot_sglang import __version__
from redknot_sglang.versions import sglang_version
from tests.serving import harness
from tests.serving.harness import Server
from tests.serving.oracle import OracleModel

pytestmark = pytest.mark.serving

PROMPT = list(range(400, 700))
ANSWER = 5
ENGINE = """
from redknot_sglang.cpu import install_kernel_stand_in

install_kernel_stand_in()  # sglang.Engine imports kernels before it loads plugins
import json, multiprocessing, sys
import sglang

if __name__ == "__main__":
    model, head_map, prompt, answer, method = json.loads(sys.argv[1])
    choose = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda _, force=False: choose(method, force=force)
    engine = sglang.Engine(
        model_path=model, redknot=True, redknot_head_map=head_map, device="cpu", attention_backend="torch_native",
        sampling_backend="pytorch", grammar_backend="none", disable_overlap_schedule=True, disable_cuda_graph=True,
        dtype="float32", max_total_tokens=4096, context_length=4096, log_level="error", redknot_uncertified=True,
    )
    body = engine.generate(
        input_ids=prompt, sampling_params={"temperature": 0, "max_new_tokens": answer, "ignore_eos": True}
    )
    print("ANSWER", json.dumps([body["output_ids"], body["meta_info"]["redknot"]]))
    engine.shutdown()
"""


@pytest.fixture(scope="module")
def config_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """RedKnot switched on by a YAML file, with metrics."""
    config = tmp_path_factory.mktemp("config") / "server.yaml"
    config.write_text(
        f"redknot: true\nredknot-head-map: {harness.HEAD_MAP}\nenable-metrics: true\nredknot-uncertified: true\n"
    )
    with harness.launch(["--config", str(config)], forked=False) as server:
        yield server


def oracle_answer() -> list[int]:
    """The oracle's greedy answer to `PROMPT` under the shipped map."""
    oracle = OracleModel(harness.MODEL, json.loads(harness.HEAD_MAP.read_text()))
    ids = list(PROMPT)
    for _ in range(ANSWER):
        ids.append(int(oracle.logprobs(ids)[-1].argmax()))
    return ids[len(PROMPT) :]


def test_status_of_a_fresh_cache(redknot_server: Server) -> None:
    redknot_server.flush()
    status = redknot_server.get("/redknot/status")
    assert status["versions"]["redknot"] == __version__
    assert status["versions"]["sglang"] == sglang_version()
    summary = status["head_map"]
    assert (summary["layers"], summary["kv_heads"], summary["window"], summary["sink"]) == (6, 4, 128, 4)
    assert summary["global_share"] == 0.25
    assert re.fullmatch("[0-9a-f]{64}", summary["fingerprint"])
    assert set(status["classes"]) == {"global", "local"}
    for name, state in status["classes"].items():
        assert state["used"] == 0 < state["slots"]
        assert status["tree"][name] == {"evictable": 0, "protected": 0}
    # K and V of 64 values of 4 bytes, 6 global and 18 local heads; with a local slot 4 query heads and their output.
    assert status["classes"]["global"]["bytes_per_slot"] == 6 * 2 * 64 * 4
    assert status["classes"]["local"]["bytes_per_slot"] == (18 + 4) * 2 * 64 * 4


def test_status_counts_a_finished_request(redknot_server: Server) -> None:
    redknot_server.flush()
    redknot_server.generate(PROMPT, ANSWER)
    status = redknot_server.get("/redknot/status")
    tokens = len(PROMPT) + ANSWER - 1  # the last token's KV is never computed
    assert status["classes"]["global"]["used"] == status["tree"]["global"]["evictable"] == tokens
    local = status["classes"]["local"]["used"]
    assert local == status["tree"]["local"]["evictable"] < tokens
    forwards = status["prefill_forwards"]
    assert forwards["eager"]["disabled"] >= 1 and not forwards["whole_graph"] and not forwards["broken_graph"]
    assert status == redknot_server.get("/server_info")["internal_states"][0]["redknot"]


@pytest.mark.pinned
def test_answers_report_what_they_cost(redknot_server: Server) -> None:
    redknot_server.flush()
    cold = redknot_server.generate(PROMPT, ANSWER)["meta_info"]["redknot"]
    warm = redknot_server.generate(PROMPT, ANSWER)["meta_info"]["redknot"]
    length = len(PROMPT) + ANSWER
    assert cold == {
        "mode": "exact",
        "cached_tokens": 0,
        "computed_tokens": len(PROMPT),
        "computed_rows": len(PROMPT),
        # The counts themselves are tested in tests/plan/test_arithmetic.py.
        "flops": cold["flops"],
        "dense_flops": cold["dense_flops"],
        "kv_bytes": length * 6 * 512 + (128 + 4) * (18 + 4) * 512,
        "stock_kv_bytes": length * 24 * 512,
        "certified": True,
        "certificate": redknot_server.get("/redknot/status")["certificate"]["digest"],
    }
    only_one_row = {"computed_tokens": 1, "computed_rows": 1, "flops": warm["flops"]}
    assert warm == cold | {"cached_tokens": len(PROMPT) - 1, **only_one_row}
    assert 0 < warm["flops"] < cold["flops"] / 100 and cold["flops"] < cold["dense_flops"]


def test_a_stream_ends_with_the_report(redknot_server: Server) -> None:
    sampling = {"temperature": 0, "max_new_tokens": ANSWER, "ignore_eos": True}
    body = {"input_ids": PROMPT, "sampling_params": sampling, "stream": True}
    lines = [line for line in redknot_server.post("/generate", body).text.splitlines() if line.startswith("data: {")]
    reports = [json.loads(line.removeprefix("data: "))["meta_info"].get("redknot") for line in lines]
    assert reports[-1]["mode"] == "exact"
    assert not any(reports[:-1]), "a request that goes on has nothing to report"


def test_openai_usage_counts_cached_tokens(redknot_server: Server) -> None:
    redknot_server.flush()
    body = {"model": "default", "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
    usages = [redknot_server.post("/v1/completions", body).json()["usage"] for _ in range(2)]
    cached = [(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for usage in usages]
    assert cached == [0, len(PROMPT) - 1]


def test_config_file_switches_on_and_metrics_count_slots(config_server: Server) -> None:
    assert config_server.generate(PROMPT, ANSWER)["output_ids"] == oracle_answer()
    status = config_server.get("/redknot/status")
    metrics = requests.get(config_server.url + "/metrics", timeout=60).text
    for name, state in status["classes"].items():
        for gauge, value in (("slots", state["slots"]), ("slots_used", state["used"])):
            shown = re.findall(rf'^redknot:{gauge}{{head_class="{name}"}} (\S+)$', metrics, re.MULTILINE)
            assert [float(number) for number in shown] == [value]


def test_metrics_count_what_segments_save(config_server: Server) -> None:
    segments = {"redknot_segments": [10, 90], "redknot_repair": "blend:0.1"}
    document = PROMPT[:80]
    before = _counters(config_server)
    reports = [
        config_server.generate(
            [*range(500, 500 + lead), *document, *PROMPT[:20]],
            2,
            sampling_params={"custom_params": {**segments, "redknot_segments": [lead, lead + 80]}},
        )["meta_info"]["redknot"]
        for lead in (10, 30)
    ]
    after = _counters(config_server)
    assert reports[1]["flops"] < reports[1]["dense_flops"]
    for kind, key in (("reused", "reused_tokens"), ("computed", "computed_tokens"), ("repaired", "repaired_tokens")):
        assert after["rows", kind] - before.get(("rows", kind), 0) == sum(report[key] for report in reports)
    # The document once, and the leads, of which the second begins with the first.
    assert after["rows", "isolated"] - before.get(("rows", "isolated"), 0) == 80 + 10 + 20
    for kind, key in (("computed", "flops"), ("dense", "dense_flops")):
        counted = after["flops", kind] - before.get(("flops", kind), 0)
        assert counted == pytest.approx(sum(report[key] for report in reports))


def _counters(server: Server) -> dict[tuple[str, str], float]:
    """`redknot:segment_*_total` by what is counted and kind."""
    metrics = requests.get(server.url + "/metrics", timeout=60).text
    found = re.findall(r'^redknot:segment_(\w+)_total{kind="(\w+)"} (\S+)$', metrics, re.MULTILINE)
    return {(what, kind): float(value) for what, kind, value in found}


def test_engine_keywords_switch_on(tmp_path: Path, full: bool) -> None:
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    # Scheduler and detokenizer that are spawned import everything again: at full size. Those of `config_server` are always.
    options = json.dumps([str(harness.MODEL), str(harness.HEAD_MAP), PROMPT, ANSWER, "spawn" if full else "fork"])
    ran = subprocess.run(
        [sys.executable, str(script), options],
        cwd=harness.ROOT,
        env={**os.environ, **harness.ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, ran.stdout + ran.stderr
    tokens, report = json.loads(lines[0].removeprefix("ANSWER "))
    assert tokens == oracle_answer()
    assert report["mode"] == "exact"


def test_off_means_stock(stock_server: Server) -> None:
    assert requests.get(stock_server.url + "/redknot/status", timeout=60).status_code == 404
    assert "redknot" not in stock_server.generate(PROMPT, 1)["meta_info"]
    info = stock_server.get("/server_info")
    assert info["radix_cache_backend"] != "redknot"
    assert "redknot" not in info["internal_states"][0]
    assert "RedKnot" not in stock_server.log_text()
