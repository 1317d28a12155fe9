# SPDX-License-Identifier: Apache-2.0
"""Flags of the servers as SGLang's own parser reads them, their memory, and which are up together."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from eval import servers
from eval.gpu.fleet import Plan, Spec, gpu_memory, held_servers, latency_servers, running, waves
from eval.gpu.options import check, make_parser, maps_of
from eval.servers import ROOT, Served
from redknot_sglang.errors import CliError
from redknot_sglang.flags import add_cli_args, make_config, take_options
from redknot_sglang.heads.head_map import load_head_map
from redknot_sglang.pool.sizing import Segments, class_bytes, split_budget
from tests.serving import harness

SHAPES = sorted(path.name for path in (ROOT / "shapes").iterdir())
H200 = 143771 * 2**20


def parse(*words: str) -> argparse.Namespace:
    args = make_parser("").parse_args(words)
    check(args)
    return args


def specs_of(args: argparse.Namespace, folder: Path) -> dict[str, Spec]:
    maps = maps_of(args, Served.of(args).folder, folder)
    return {spec.side: spec for spec in latency_servers(args, maps)}


def parsed(flags: list[str]) -> argparse.Namespace:
    """As the server reads its command line."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    if "--redknot-mode" not in parser.format_help():
        add_cli_args(parser)
    return parser.parse_args(flags)


@pytest.mark.parametrize("shape", SHAPES)
def test_sglang_reads_the_flags_of_every_shape(shape: str, tmp_path: Path) -> None:
    graphs = ["--stock-prefill-graphs=128,384,8192", "--redknot-prefill-graphs=128"]
    args = parse(
        f"--shape={shape}", "--maps=one_of_eight,all_global,rho.5-w4096", *graphs, "--stock-flag=--log-level=error"
    )
    specs = specs_of(args, tmp_path)
    assert list(specs) == ["stock", "one_of_eight", "all_global", "rho.5-w4096"]
    read = {side: parsed(spec.flags) for side, spec in specs.items()}
    stock, ours, other = read["stock"], read["one_of_eight"], read["rho.5-w4096"]
    assert stock.attention_backend == "fa3" and not stock.redknot and stock.load_format == "dummy"
    assert stock.cuda_graph_backend_prefill == "breakable" and stock.cuda_graph_bs_prefill == [128, 384, 8192]
    assert ours.cuda_graph_bs_prefill == [128] and stock.log_level == "error" and ours.log_level != "error"
    assert stock.mem_fraction_static == 0.95 and stock.max_total_tokens == specs["stock"].kv_tokens
    for one in read.values():
        assert one.cuda_graph_bs_decode[-1] == 64 and one.context_length == 131072 + 1024
        model = {**Served.of(args).config, **json.loads(one.json_model_override_args)}
        assert model["max_position_embeddings"] >= one.context_length
    config = make_config(take_options(vars(ours)), None)
    assert config is not None and config.mode == "segmented" and config.repair == "boundary:16"
    assert config.kv_budget == stock.max_total_tokens * Served.of(args).token_bytes
    exact = make_config(take_options(vars(other)), None)
    assert exact is not None and exact.mode == "exact" and exact.head_map.name == "rho.5-w4096.json"


def test_a_server_that_is_asked_under_blend_has_room_for_it(tmp_path: Path) -> None:
    words = ["--shape=qwen3-8b", f"--checkpoint={tmp_path}", "--steps=segments,load"]
    for policies in (["--policies=boundary:16,blend:0.08"], ["--load-policy=none,blend:0.08"]):
        flags = parsed(specs_of(parse(*words, *policies), tmp_path)["one_of_eight"].flags)
        config = make_config(take_options(vars(flags)), None)
        assert config is not None and config.repair == "blend:0.08"


@pytest.mark.parametrize("shape", SHAPES)
def test_sglang_takes_the_raised_context_of_every_shape(shape: str, tmp_path: Path) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    flags = parsed(specs_of(parse(f"--shape={shape}", "--steps=cold"), tmp_path)["stock"].flags)
    overrides = flags.json_model_override_args
    found = ModelConfig(flags.model_path, context_length=flags.context_length, model_override_args=overrides)
    kv_heads = 4 if shape == "qwen3-30b-a3b" else 8
    assert (found.context_len, found.num_key_value_heads, found.head_dim) == (132096, kv_heads, 128)


def test_without_prefill_graphs_they_are_off_on_both_sides(tmp_path: Path) -> None:
    for spec in specs_of(parse("--shape=qwen3-8b"), tmp_path).values():
        assert parsed(spec.flags).cuda_graph_backend_prefill == "disabled"


@pytest.mark.parametrize("length", [32768, 131072])
def test_segments_of_a_prompt_and_the_prompt_fit_under_blend(length: int, tmp_path: Path) -> None:
    args = parse("--shape=qwen3-8b", f"--lengths={length}", "--steps=segments")
    served = Served.of(args)
    head_map = load_head_map(maps_of(args, served.folder, tmp_path)["one_of_eight"])
    plan = Plan.of(args, head_map)
    cost = class_bytes(head_map, 128, 2, probe_width=4)
    slots = split_budget(head_map, cost, plan.main * served.token_bytes, length + 1024, 8192, Segments(whole=True))
    assert slots.global_slots >= 2 * length + 2048 and slots.local_slots >= length + 2 * 8192


@pytest.mark.parametrize("name", ["all_global", "rho.25-w1024"])
def test_further_maps_hold_the_longest_prompt(name: str, tmp_path: Path) -> None:
    args = parse("--shape=qwen3-8b", f"--maps=one_of_eight,{name}", "--steps=cold,decode")
    path = maps_of(args, Served.of(args).folder, tmp_path)[name]
    budget = int(parsed(specs_of(args, tmp_path)[name].flags).redknot_kv_budget)
    head_map = load_head_map(path)
    slots = split_budget(head_map, class_bytes(head_map, 128, 2), budget, 131072 + 1024, 8192)
    assert slots.global_slots >= 131072 * 1.2


def test_the_load_step_has_room_for_its_corpus_and_running_requests(tmp_path: Path) -> None:
    specs = specs_of(parse("--shape=qwen3-8b", "--steps=load", "--load-policy=none"), tmp_path)
    tokens = specs["stock"].kv_tokens
    assert tokens is not None and tokens >= 32 * 2048 + 6 * 16 * 2048
    flags = parsed(specs["one_of_eight"].flags)
    assert flags.redknot_repair == "none" and flags.redknot_segment_length == 2048 and flags.context_length > 16 * 2048


@pytest.mark.parametrize(("length", "sent", "gib"), [(32768, (7, 40), 24), (131072, (5, 27), 60)])
def test_concurrency_sends_two_more_than_fit(length: int, sent: tuple[int, int], gib: int, tmp_path: Path) -> None:
    args = parse("--shape=qwen3-8b", "--steps=concurrency")
    path = maps_of(args, Served.of(args).folder, tmp_path)["one_of_eight"]
    specs, counts, kv_bytes = held_servers(args, "one_of_eight", path, length)
    assert tuple(counts.values()) == sent and kv_bytes == gib * 2**30
    stock, ours = (parsed(spec.flags) for spec in specs)
    assert stock.max_total_tokens == kv_bytes // 147456 and int(ours.redknot_kv_budget) == kv_bytes
    assert stock.decode_log_interval == ours.decode_log_interval == 8 and ours.redknot_mode is None


def test_as_many_servers_are_up_as_the_gpu_holds(tmp_path: Path) -> None:
    args = parse("--shape=qwen3-8b", "--maps=one_of_eight,all_global")
    specs = list(specs_of(args, tmp_path).values())
    sides = [[spec.side for spec in wave] for wave in waves(specs, int(0.95 * H200), None)]
    assert sides == [["stock", "one_of_eight", "all_global"]]
    assert [len(wave) for wave in waves(specs, 2 * specs[0].need, None)] == [2, 1]
    assert [len(wave) for wave in waves(specs, 1, 1)] == [1, 1, 1]
    assert [len(wave) for wave in waves(specs, None, None)] == [3]
    with pytest.raises(CliError, match="--kv-tokens"):
        waves(specs, specs[0].need - 1, None)
    assert gpu_memory("NVIDIA H200, 143771 MiB", 0.5) == H200 // 2
    assert gpu_memory("CPU, 2 cores", 0.5) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps=warm"], "'warm' is not known"),
        (["--further-steps=segments"], "take part in cold, prefix, decode"),
        (["--steps=kernels"], "needs a GPU"),
        (["--shape=unknown"], "eval/shapes"),
        (["--stock-prefill-graphs=128"], "give --shape"),
        (["--requests=0"], "at least 1"),
        (["--segment-lengths=256"], "no room"),
        (["--shape=qwen3-8b", "--policies=blend:0.08"], "give --checkpoint"),
        (["--shape=qwen3-8b", "--steps=load", "--load-policy=boundary:16,blend:0.08"], "give --checkpoint"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(CliError, match=message):
        parse(*words)


def test_map_names_are_distinct(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="each name once"):
        maps_of(parse("--maps=head_map,head_map"), ROOT / "model", tmp_path)


def test_a_server_that_does_not_start_is_told_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    from redknot_sglang.errors import ServerError

    harness.fork_servers_of(servers, monkeypatch, full)
    with running([Spec("stock", ["--no-such-flag"], 0)], Served(None, None, "", 1), tmp_path / "gpu") as found:
        assert isinstance(found["stock"], ServerError) and "exit code 2" in str(found["stock"])
