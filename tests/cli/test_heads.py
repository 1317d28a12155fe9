# SPDX-License-Identifier: Apache-2.0
"""`redknot heads`, called as the program calls it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.cli.heads import add_parser
from redknot_sglang.heads import load_head_map

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 512,
}
PUBLIC: dict[str, Any] = {
    "model_type": "llama",
    "num_layers": 3,
    "num_kv_heads": 4,
    "kv_head_classification": [["global", "local", "local", "local"]] * 3,
    "kv_head_max_distance": [[-1, 64, 64, 64], [-1, 64, 128, 64], [-1, 64, 64, 64]],
}


def redknot(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="redknot")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["heads", *map(str, arguments)])
    code = args.func(args)
    assert isinstance(code, int)
    return code


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture
def public(tmp_path: Path) -> Path:
    file = tmp_path / "public.json"
    file.write_text(json.dumps(PUBLIC))
    return file


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr; nothing may be on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_make_all_global(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.json"
    assert redknot("make", "--model", model, "--all-global", "--out", out) == 0
    head_map = load_head_map(out)
    assert head_map.all_global
    assert (head_map.window, head_map.sink) == (128, 4)
    head_map.check_model(3, 4, "llama")
    assert head_map.model.head_dim == 64
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {out}: 3 layers x 4 KV heads, 100.0% global, window 128, sink 4, fingerprint")


def test_make_chosen_heads(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.json"
    arguments = ["make", "--model", model, "--global", "0:1,2:*", "--window", 256, "--sink", 0, "--out", out]
    assert redknot(*arguments) == 0
    head_map = load_head_map(out)
    assert [head_map.global_heads(layer) for layer in range(3)] == [(1,), (), (0, 1, 2, 3)]
    assert (head_map.window, head_map.sink) == (256, 0)
    assert head_map.provenance["method"] == "manual" and head_map.provenance["choice"] == "0:1,2:*"
    first = out.read_bytes()
    assert redknot(*arguments) == 0
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--global", "0:1"], "--global needs --window and --sink, for example --window 256 --sink 4"),
        (["--global", "0:1", "--window", "8"], "--global needs --sink, for example --window 256 --sink 4"),
        (["--global", "0:1", "--window", "0", "--sink", "4"], "window must be at least 1, got int 0"),
        (["--global", "0:1", "--window", "8", "--sink", "-1"], "sink must be at least 0, got int -1"),
        (
            ["--global", "0:1,3:0", "--window", "8", "--sink", "4"],
            "global heads, item 2 '3:0': no layer 3, the model has layers 0 to 2",
        ),
        (["--all-global", "--window", "-5"], "window must be at least 1, got int -5"),
    ],
)
def test_make_errors(
    arguments: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.json"
    assert redknot("make", "--model", model, "--out", out, *arguments) == 2
    assert error_line(capsys) == f"redknot heads make: error: {message}"
    assert not out.exists()


def test_make_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert redknot("make", "--model", tmp_path / "none", "--all-global", "--out", tmp_path / "map.json") == 2
    assert error_line(capsys).startswith("redknot heads make: error: ")


@pytest.mark.parametrize("arguments", [[], ["make"], ["make", "--model", "m", "--out", "o"], ["show"], ["import", "f"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        redknot(*arguments)
    assert caught.value.code == 2


def test_all_global_excludes_global() -> None:
    with pytest.raises(SystemExit) as caught:
        redknot("make", "--model", "m", "--all-global", "--global", "0:0", "--out", "o")
    assert caught.value.code == 2


def test_show(public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, png = tmp_path / "map.svg", tmp_path / "map.png"
    assert redknot("show", public, "--length", 777, "--svg", svg, "--png", png) == 0
    printed = capsys.readouterr().out
    assert "    2  #...        1      3\n" in printed
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == ["777", "4096", "32768", "131072"]
    assert svg.read_text().startswith("<svg ")
    assert png.read_bytes().startswith(b"\x89PNG\r\n")


def test_show_errors(public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no\x1b[2Jmap.json"
    assert redknot("show", missing) == 2
    assert error_line(capsys) == f"redknot heads show: error: {tmp_path}/no?[2Jmap.json: no such file; check the path"
    assert redknot("show", public, "--length", 0) == 2
    assert error_line(capsys) == "redknot heads show: error: length must be at least 1, got int 0"


def test_show_where_the_picture_cannot_be_written(
    public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = tmp_path / "none" / "map.svg"
    assert redknot("show", public, "--svg", svg) == 2
    assert capsys.readouterr().err == (
        f"redknot heads show: error: {svg}: cannot be written: No such file or directory\n"
    )


def test_import_says_what_it_changed(
    public: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.json"
    assert redknot("import", public, "--model", model, "--out", out) == 0
    head_map = load_head_map(out)
    assert (head_map.window, head_map.sink) == (128, 4)
    assert head_map.model.architecture == "LlamaForCausalLM"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "note: the source asks for a window of 64 to 128, the map has 128",
        "note: 9 local heads have no sink in the source: took the format's default, 4",
    ]


def test_import_with_options(public: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.json"
    assert redknot("import", public, "--window", 32, "--sink", 1, "--out", out) == 0
    assert (load_head_map(out).window, load_head_map(out).sink) == (32, 1)
    assert "note: the source asks for a window of 64 to 128, the map has 32" in capsys.readouterr().out


def test_import_of_gates(tmp_path: Path) -> None:
    table, out = tmp_path / "full_attention_heads.tsv", tmp_path / "map.json"
    table.write_text("0.9\t0.2\n0.3\t0.8\n")
    (tmp_path / "config.json").write_text('{"sink_size": 2, "recent_size": 64}')
    assert redknot("import", table, "--threshold", 0.25, "--out", out) == 0
    assert load_head_map(out).is_global == ((True, False), (True, True))
    assert load_head_map(out).provenance["threshold"] == 0.25


def test_import_for_another_model(
    public: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "num_key_value_heads": 8}))
    out = tmp_path / "map.json"
    assert redknot("import", public, "--model", model, "--out", out) == 2
    assert "KV heads per layer: 4 in the map, 8 in the model" in error_line(capsys)
    assert not out.exists()


SHAPES = Path(__file__).parents[2] / "eval" / "shapes"


def test_published_gates_at_the_shape_of_their_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table as DuoAttention publishes it for Llama-3.1-8B, 32 layers of 8, most gates near 1, as in the published ones."""
    table = [[0.99 - 0.001 * (8 * layer + head) for head in range(8)] for layer in range(32)]
    (tmp_path / "full_attention_heads.tsv").write_text(
        "".join("\t".join(f"{g:.18e}" for g in row) + "\n" for row in table)
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"model_name": "models/Llama", "sink_size": 128, "recent_size": 256})
    )
    words = ("import", tmp_path / "full_attention_heads.tsv", "--out", tmp_path / "map.json", "--model")
    assert redknot(*words, SHAPES / "llama-3.1-8b", "--global-share", 0.25) == 0
    head_map = load_head_map(tmp_path / "map.json")
    assert head_map.global_share == 0.25 and head_map.global_layers == tuple(range(8))
    assert (head_map.window, head_map.sink, head_map.model.model_type) == (256, 128, "llama")
    assert redknot("show", tmp_path / "map.json") == 0
    assert "  all  25.0%         64    192" in capsys.readouterr().out
    assert redknot(*words, SHAPES / "llama-3.1-8b") == 0
    assert load_head_map(tmp_path / "map.json").global_share == 1.0  # above 0.5 they all are
    capsys.readouterr()
    assert redknot(*words, SHAPES / "qwen3-8b") == 2
    assert "layers: 32 in the map, 36 in the model" in error_line(capsys)


def test_public_maps_at_the_shape_of_their_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A document as RedKnot publishes it for Qwen3-8B: distances beyond any window for global heads, sinks per head."""
    source = tmp_path / "redknot.json"
    document = {
        "model": "Qwen3-8B", "model_type": "qwen3", "num_layers": 36, "num_kv_heads": 8,
        "kv_head_classification": [["global"] + ["local"] * 7] * 36,
        "kv_head_max_distance": [[-1] + [1024] * 7] * 36, "kv_head_sink_size": [[4] * 8] * 36,
    }  # fmt: skip
    source.write_text(json.dumps(document))
    words = ("import", source, "--out", tmp_path / "map.json", "--model")
    assert redknot(*words, SHAPES / "qwen3-8b") == 0
    head_map = load_head_map(tmp_path / "map.json")
    assert head_map.global_share == 1 / 8 and (head_map.window, head_map.sink) == (1024, 4)
    assert head_map.model.architecture == "Qwen3ForCausalLM"
    assert redknot("show", tmp_path / "map.json") == 0
    capsys.readouterr()
    assert redknot(*words, SHAPES / "llama-3.1-8b") == 2
    assert "layers: 36 in the map, 32 in the model" in error_line(capsys)
    source.write_text(json.dumps({**document, "model_type": "llama"}))
    assert redknot(*words, SHAPES / "qwen3-8b") == 2
    assert "model type: llama in the map, qwen3 in the model" in error_line(capsys)
    assert redknot(*words, SHAPES / "qwen3-8b", "--global-share", 0.5) == 2
    assert "a share of global heads applies to DuoAttention tables only" in error_line(capsys)
