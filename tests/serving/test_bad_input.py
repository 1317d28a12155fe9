# SPDX-License-Identifier: Apache-2.0
"""What cannot work stops the server with one clear line; what does not fit is a 400 and the server goes on."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.heads import HeadMap
from tests.serving import harness
from tests.serving.maps import make_map, save_map

ERROR = "redknot: error: "
MAP_ARGUMENT = f"--redknot-head-map={harness.HEAD_MAP}"


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(harness.HEAD_MAP.read_text())
    return document


def _changed(path: tuple[str, ...], value: Any) -> str:
    document = _document()
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document)


# Name of the case: text of the head map file, and what the message must name.
BAD_MAPS: dict[str, tuple[str, str]] = {
    "empty": ("", "is empty"),
    "not JSON": ("window = 128", "JSON"),
    "not a head map": ('{"layers": 6}', "not a head map"),
    "version of the future": (_changed(("version",), 99), "version"),
    "a layer too few": (_changed(("layers",), _document()["layers"][:-1]), "layer"),
    "a head too many": (_changed(("layers",), ["LLLLL"] * 6), "heads"),
    "another model's layers": (
        json.dumps(_document() | {"layers": ["LLLL"] * 8, "model": _document()["model"] | {"num_layers": 8}}),
        "layers: 8 in the map, 6 in the model",
    ),
    "another model's heads": (
        json.dumps(_document() | {"layers": ["LL"] * 6, "model": _document()["model"] | {"num_kv_heads": 2}}),
        "KV heads per layer: 2 in the map, 4 in the model",
    ),
    "another model type": (_changed(("model", "model_type"), "qwen3"), "model type"),
    "unknown class": (_changed(("layers",), ["LLXL"] * 6), "X"),
    "window 0": (_changed(("local", "window"), 0), "window"),
    "window as text": (_changed(("local", "window"), "128"), "window"),
    "negative sink": (_changed(("local", "sink"), -1), "sink"),
}

# Flags after `--redknot --redknot-head-map=...`, and what the message must name.
BAD_FLAGS: dict[str, tuple[list[str], str]] = {
    "page size": (["--page-size=16"], "--page-size 16"),
    "a draft model": (
        [
            "--speculative-algorithm=STANDALONE",
            f"--speculative-draft-model-path={harness.MODEL}",
            "--speculative-num-steps=2",
            "--speculative-eagle-topk=1",
            "--speculative-num-draft-tokens=3",
        ],
        "use NGRAM, EAGLE or EAGLE3",
    ),
    "a draft model's drafts that are trees": (
        [
            "--speculative-algorithm=EAGLE",
            f"--speculative-draft-model-path={harness.MODEL}",
            "--speculative-num-steps=2",
            "--speculative-eagle-topk=2",
            "--speculative-num-draft-tokens=3",
        ],
        "add --speculative-eagle-topk 1",
    ),
    "a draft model without a name": (
        [
            "--speculative-algorithm=EAGLE",
            "--speculative-num-steps=2",
            "--speculative-eagle-topk=1",
            "--speculative-num-draft-tokens=3",
        ],
        "add --speculative-draft-model-path",
    ),
    "drafts that are trees": (
        ["--speculative-algorithm=NGRAM", "--speculative-num-draft-tokens=4"],
        "add --speculative-ngram-max-bfs-breadth 1",
    ),
    "write back": (["--enable-hierarchical-cache", "--hicache-write-policy=write_back"], "evicting would wait"),
    "a store of several ranks": (
        ["--enable-hierarchical-cache", "--hicache-storage-backend=file", "--tp-size=2"],
        "all ranks to agree on what is there",
    ),
    "another store": (
        ["--enable-hierarchical-cache", "--hicache-storage-backend=nixl"],
        "in the stores file and mooncake only",
    ),
    "a store without a host tier": (["--hicache-storage-backend=file"], "needs --enable-hierarchical-cache"),
    "waiting for a store for ever": (
        [
            "--enable-hierarchical-cache",
            "--hicache-storage-backend=file",
            "--hicache-storage-prefetch-policy=wait_complete",
        ],
        "use timeout with a long prefetch_timeout_base",
    ),
    "host copies": (["--enable-hierarchical-cache", "--hicache-io-backend=direct"], "--hicache-io-backend direct"),
    "host layout": (
        ["--enable-hierarchical-cache", "--hicache-mem-layout=page_head"],
        "--hicache-mem-layout page_head",
    ),
    "an untried transfer": (
        ["--disaggregation-mode=decode", "--disaggregation-transfer-backend=nixl"],
        "--disaggregation-transfer-backend nixl",
    ),
    "a tree on a decode server": (
        ["--disaggregation-mode=decode", "--disaggregation-decode-enable-radix-cache"],
        "prefixes are reused on the prefill server",
    ),
    "data-parallel prefill": (["--disaggregation-mode=prefill", "--dp-size=2"], "--dp-size 2 cannot be used"),
    "data-parallel attention": (
        ["--enable-dp-attention", "--dp-size=2", "--tp-size=2"],
        "--enable-dp-attention True cannot be used",
    ),
    "documents that only the prefill server leaves out": (
        ["--disaggregation-mode=prefill", "--redknot-mode=segmented", "--redknot-repair=question:2"],
        "the decode server would not know which",
    ),
    "scales that are not there": (
        ["--kv-cache-dtype=fp8_e4m3", "--quantization-param-path=/nowhere.json"],
        "--quantization-param-path /nowhere.json is no file",
    ),
    "scales of prefill servers": (
        ["--disaggregation-mode=prefill", "--kv-cache-dtype=fp8_e4m3", f"--quantization-param-path={__file__}"],
        "--quantization-param-path cannot be used with --disaggregation-mode prefill",
    ),
    "attention backend": (["--attention-backend=triton"], "--attention-backend triton"),
    "pipeline stages": (["--pp-size=2"], "--pp-size 2"),
    "more ranks than KV heads on a CPU": (["--device=cpu", "--tp-size=8"], "--tp-size 8 cannot be used"),
    "KV heads that cannot be shared out": (["--device=cpu", "--tp-size=3"], "use a number that divides them"),
    "another radix cache": (["--radix-cache-backend=lru"], "--radix-cache-backend lru"),
    "keys that several tokenizer workers do not ask for": (
        ["--tokenizer-worker-num=2", "--admin-api-key=secret"],
        "--api-key and --admin-api-key cannot be used with --tokenizer-worker-num over 1",
    ),
    "a memory saver on a CPU": (["--device=cpu", "--enable-memory-saver"], "gives back memory of NVIDIA GPUs"),
    "a memory saver on a prefill server": (
        ["--enable-memory-saver", "--disaggregation-mode=prefill"],
        "the other server has the addresses of the pools",
    ),
    "deterministic inference": (["--enable-deterministic-inference"], "cuts its sums depends on the batch"),
    "on-policy inference": (["--rl-on-policy-target=fsdp"], "as --enable-deterministic-inference does"),
    "an eviction by sessions": (["--enable-session-radix-cache"], "looks at no session"),
    "streaming sessions": (["--enable-streaming-session"], "while local heads keep the first tokens too"),
    "context length 0": (["--redknot-context-length=0"], "--redknot-context-length"),
    "context length over the model's": (["--redknot-context-length=99999"], "exceeds the model's context length"),
    "a GPU's attention on a CPU": (["--device=cpu", "--redknot-attention=fa3"], "--redknot-attention fa3 needs a GPU"),
    "too few tokens": (["--max-total-tokens=10"], "--max-total-tokens 10 cannot hold a single request"),
    "no tokens": (["--max-total-tokens=0"], "--max-total-tokens 0 cannot hold a single request"),
    "too small a budget": (["--redknot-kv-budget=10K"], "--redknot-kv-budget 10240 bytes cannot hold a single request"),
    "more segments than tokens": (["--redknot-segment-tokens=99999"], "--redknot-segment-tokens 99999 leave no room"),
    "more segments than a budget": (
        ["--redknot-segment-tokens=99999", "--redknot-kv-budget=8M"],
        "--redknot-segment-tokens 99999 leave no room",
    ),
    "a budget that is no size": (["--redknot-kv-budget=lots"], "--redknot-kv-budget 'lots'"),
}


def _start_up_error(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the launcher would print when it reads these arguments with the plugin loaded."""
    from redknot_sglang import cpu

    cpu.install_kernel_stand_in()
    from sglang.srt.plugins import load_plugins

    load_plugins()
    # SGLang 0.5.23 reads flags here and resolves them later; ours does both.
    from redknot_sglang.seams.sglang import prepare_server_args

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        prepare_server_args(harness.flags(args))
    # A text is printed by the interpreter, which then exits with 1.
    return str(stop.value.code) if isinstance(stop.value.code, str) else capsys.readouterr().err


def _assert_one_line(message: str, names: str) -> None:
    lines = message.splitlines()
    assert len(lines) == 1 and message.startswith(ERROR), message
    assert names in message


# On a CPU SGLang 0.5.23 starts two servers only where each is told its cores.
@pytest.mark.serving
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.pinned)])
def test_sizes_that_only_the_scheduler_can_refuse_are_one_line_too(ranks: int) -> None:
    # No budget and no number of tokens: how much memory there is shows when the weights are loaded.
    flags = [flag for flag in harness.FLAGS if not flag.startswith("--max-total-tokens")]
    args = ["--redknot", f"--redknot-head-map={harness.HEAD_MAP}", "--redknot-segment-tokens=100000000000"]
    code, log = harness.refused([*args, "--redknot-uncertified", f"--dp-size={ranks}"], timeout=300, only=flags)
    said = [line for line in log.splitlines() if "redknot: error:" in line]
    # Data-parallel ranks start at the same time, and each says it.
    assert code == 1 and 2 <= len(said) <= ranks + 1, log
    assert "given above" in said[-1] and all("leave no room for a request" in line for line in said[:-1]), log
    assert "Traceback" not in log


@pytest.mark.parametrize("case", BAD_MAPS)
def test_wrong_head_map_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, names = BAD_MAPS[case]
    path = tmp_path / "map.json"
    path.write_text(text)
    message = _start_up_error(["--redknot", f"--redknot-head-map={path}"], capsys)
    _assert_one_line(message, names)
    # Where map and model do not fit together, either may be the wrong one.
    assert (str(path) in message) == ("in the model" not in message)


# Flags of what SGLang 0.5.17 serves with us and others do not yet, which they refuse with another reason.
PINNED = {
    "a draft model",
    "a draft model's drafts that are trees",
    "a draft model without a name",
    "drafts that are trees",
    "another store",
    "data-parallel prefill",
    "data-parallel attention",
    "documents that only the prefill server leaves out",
    "scales of prefill servers",
    "keys that several tokenizer workers do not ask for",
    "a memory saver on a prefill server",
}


def test_the_pinned_cases_are_cases() -> None:
    assert set(BAD_FLAGS) >= PINNED


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.pinned] if case in PINNED else []) for case in BAD_FLAGS]
)
def test_wrong_flags_are_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    args, names = BAD_FLAGS[case]
    _assert_one_line(_start_up_error(["--redknot", MAP_ARGUMENT, *args], capsys), names)


@pytest.mark.pinned
@pytest.mark.parametrize(
    ("variable", "value"), [("SGLANG_DISAGG_STAGING_BUFFER", "1"), ("SGLANG_MOONCAKE_CUSTOM_MEM_POOL", "NVLINK")]
)
def test_ways_of_transfer_that_know_whole_tokens_only_are_refused(
    variable: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    flags = ["--redknot", MAP_ARGUMENT, "--disaggregation-mode=decode"]
    _assert_one_line(_start_up_error(flags, capsys), f"{variable} cannot be used with --disaggregation-mode decode")


def test_a_map_that_no_probe_can_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head_map = save_map(HeadMap.from_global_heads(6, 4, [(1, 1)], 16, 4), tmp_path)
    args = ["--redknot", f"--redknot-head-map={head_map}", "--redknot-mode=segmented", "--redknot-repair=blend:0.08"]
    _assert_one_line(_start_up_error(args, capsys), "global heads in at least two layers")


def test_redknot_flags_without_redknot_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    _assert_one_line(_start_up_error([MAP_ARGUMENT], capsys), "without --redknot")


def test_unknown_attention_path_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    message = _start_up_error(["--redknot", MAP_ARGUMENT, "--redknot-attention=fast"], capsys)
    assert "--redknot-attention: invalid choice: 'fast'" in message


@pytest.mark.serving
def test_real_servers_stop_with_one_line(tmp_path: Path, full: bool) -> None:
    cases = {
        "no such file": ["--redknot", f"--redknot-head-map={tmp_path / 'none.json'}"],
        "--redknot-kv-budget": ["--redknot", MAP_ARGUMENT, "--redknot-kv-budget=1000"],
        "there is no certificate": ["--redknot", f"--redknot-head-map={save_map(make_map(40, 4), tmp_path)}"],
    }
    if full:
        cases["--pp-size 2"] = ["--redknot", MAP_ARGUMENT, "--pp-size=2"]
        cases["without --redknot"] = ["--redknot-context-length=100"]
    # One as its users start it, which takes ten times as long; at full size all of them.
    forked = [harness.ON_CPU and not full and names != "no such file" for names in cases]
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda args, forked: harness.refused(args, forked=forked), cases.values(), forked))
    for names, (code, output) in zip(cases, ended, strict=True):
        lines = [line for line in output.splitlines() if line.startswith(ERROR)]
        assert code != 0
        assert len(lines) == 1 and names in lines[0], output[-3000:]
        assert "Traceback" not in output, output[-3000:]


@pytest.mark.serving
def test_prompt_longer_than_a_pool_is_a_400_and_the_server_goes_on() -> None:
    # The global pool is smaller than the model's context.
    with harness.launch(["--redknot", MAP_ARGUMENT, "--max-total-tokens=1000"]) as server:
        short = server.generate([500] * 100, 4)["output_ids"]
        too_long = [600] * 1500
        sampling = {"max_new_tokens": 4}
        native = server.post("/generate", {"input_ids": too_long, "sampling_params": sampling})
        openai = server.post("/v1/completions", {"model": "default", "prompt": too_long, "max_tokens": 4})
        for answer in (native, openai):
            assert answer.status_code == 400, answer.text
            assert "1500" in answer.text, answer.text
        batch = server.post("/generate", {"input_ids": [too_long, [500] * 100], "sampling_params": sampling})
        assert batch.status_code == 400, batch.text
        assert server.generate([500] * 100, 4)["output_ids"] == short
        status = server.get("/redknot/status")
        tree = status["tree"]
        assert all(state["used"] == tree[name]["evictable"] for name, state in status["classes"].items())
