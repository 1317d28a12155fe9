# SPDX-License-Identifier: Apache-2.0
"""`redknot profile` end to end on the embedded model, and what it says to bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from redknot_sglang.cli import profile_options
from redknot_sglang.cli.main import main
from redknot_sglang.heads import load_head_map
from redknot_sglang.profile import start
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.objective import TARGETS
from redknot_sglang.profile.record import load_record
from redknot_sglang.profile.reuse import LEVELS

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "eval" / "model"
SHAPE = ROOT / "eval" / "shapes" / "qwen3-8b"
QUICK = ["--dtype", "float32", "--points", "1", "--windows", "64", "--curve", "32,128", "--reuse", "none"]


def run(out: Path, *options: object, model: Path = MODEL) -> int:
    return main(["profile", str(model), "--out", str(out), *map(str, options)])


def test_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.json"
    words = [
        "--data",
        "tasks",
        "--tasks",
        "lookup",
        "--lengths",
        256,
        "--n",
        1,
        "--target-kv",
        0.45,
        "--at",
        4096,
        *QUICK,
    ]
    assert run(out, *words, "--methods", "mass,ablation") == 0
    head_map = load_head_map(out)
    head_map.check_model(6, 4, "llama")
    assert (head_map.window, head_map.sink) == (64, 4) and head_map.compression(4096) <= 0.45
    record = load_record(tmp_path / "map.profile.json")
    assert list(record["methods"]) == ["mass", "ablation"] and record["dense"]["exact"] == 1.0
    assert record["data"]["seeds"] == [1000, 1000] and record["model"]["name"] == "model"
    assert list(record["methods"]["mass"]["harm"]) == ["32", "64", "128"]
    said = capsys.readouterr()
    assert f"wrote {out}: 6 layers x 4 KV heads" in said.out and "certify it on other seeds" in said.out
    assert "ablation: " in said.err
    assert run(out, *words, "--methods", "mass,ablation") == 0  # all of it is known
    again = load_record(tmp_path / "map.profile.json")
    assert all(again["methods"][name]["seconds"] < 1 for name in again["methods"])
    assert again["points"] == record["points"] and load_head_map(out) == head_map


@pytest.mark.parametrize(("target", "exact"), [((), 1.0), (("--target", "answers"), None)])
def test_prompts_of_the_user(target: tuple[str, ...], exact: float | None, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    text = "Report kram:\nblue dog runs\n" * 6
    data.write_text(json.dumps({"prompt": text + "Question:\n", "documents": [text]}) + "\n")
    out = tmp_path / "map.json"
    assert run(out, "--data", data, "--methods", "distortion", "--max-loss", 5, *QUICK[:-2], *target) == 0
    record = load_record(tmp_path / "map.profile.json")
    assert record["data"]["name"] == "prompts.jsonl" and record["dense"]["exact"] == exact
    assert record["target"]["loss"] == ("answers" if target else "own")
    assert record["settings"]["own_tokens"] == (None if target else 32)
    assert record["target"]["at"] == record["data"]["tokens"]["largest"]
    assert record["reuse"]["output"][0] == [0.0] * 4


def test_dummy_weights_at_a_shape(tmp_path: Path) -> None:
    """A folder with nothing but a config.json, here with the shape made tiny."""
    config = json.loads((SHAPE / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--data", "random", "--lengths", 100, "--n", 1, "--methods", "mass", "--target-kv", 1, *QUICK]
    assert run(tmp_path / "map.json", *words, "--load-format", "dummy", model=tmp_path) == 0
    assert load_head_map(tmp_path / "map.json").provenance["load_format"] == "dummy"


def test_names_are_those_of_the_package() -> None:
    """The command line knows them without importing torch."""
    assert tuple(METHODS) == profile_options.METHODS and LEVELS == profile_options.REUSE
    assert TARGETS == profile_options.TARGETS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "tasks"], "give either --target-kv or --max-loss"),
        (["--data", "tasks", "--target-kv", 0.5, "--max-loss", 1], "give either --target-kv or --max-loss"),
        (["--data", "tasks", "--target-kv", 2], "--target-kv must be above 0 and at most 1, got 2.0"),
        (
            ["--data", "tasks", "--target-kv", 0.5, "--methods", "mass,magic"],
            "--methods: unknown 'magic'; use some of mass",
        ),
        (["--data", "tasks", "--target-kv", 0.5, "--windows", "64,x"], "--windows must be numbers separated by commas"),
        (["--data", "tasks", "--target-kv", 0.5, "--windows", "0"], "--windows must be at least 1, got 0"),
        (["--data", "tasks", "--target-kv", 0.5, "--n", 0], "--n must be at least 1, got 0"),
        (["--data", "tasks", "--target-kv", 0.5, "--own-tokens", 0], "--own-tokens must be at least 1, got 0"),
        (["--data", "tasks", "--target-kv", 0.5, "--sink", -1], "--sink, --seed and --retrieval must be at least 0"),
        (
            ["--data", "absent.jsonl", "--target-kv", 0.5],
            "--data: 'absent.jsonl' is neither `tasks` nor `random` nor a file; check the path",
        ),
        (["--data", "tasks", "--target-kv", 0.5, "--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N"),
        (["--data", "tasks", "--tasks", "chess", "--target-kv", 0.5], "unknown task 'chess'"),
        (["--data", "tasks", "--lengths", 20, "--target-kv", 0.5], "task lookup: length 20 is too short"),
        (
            ["--data", "tasks", "--lengths", 256, "--n", 1, "--target-kv", 0.01, "--at", 400],
            "sink and window alone take 0.33 of the KV bytes at 400 tokens",
        ),
    ],
)
def test_bad_options(options: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "map.json", *options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("redknot profile: error: ") and message in said
    assert not (tmp_path / "map.json").exists()


def test_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "notes.txt"
    data.write_text("Report kram:\nblue dog runs\n" * 60)
    out = tmp_path / "map.json"
    words = ["--data", data, "--lengths", 150, "--n", 2, "--methods", "mass", "--target-kv", 1, *QUICK]
    assert run(out, *words) == 0
    record = load_record(tmp_path / "map.profile.json")
    assert (record["data"]["source"], record["data"]["examples"], record["data"]["lengths"]) == ("text", 2, [150])
    assert record["dense"] == {"loss": 0.0, "exact": 1.0}
    assert "divergence from dense attention's own answers 0.00000, dense 0.00000" in capsys.readouterr().out
    # What was measured under one target is no measurement under the other.
    assert run(out, *words, "--target", "answers") == 0
    assert load_record(tmp_path / "map.profile.json")["dense"]["loss"] > 0.01


def test_bad_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "tasks", "--target-kv", 0.5]
    config = json.loads((MODEL / "config.json").read_text())
    for change, message in (
        (None, "no such file"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_head": 4, "n_layer": 1, "n_embd": 8}, "GPT2LMHeadModel cannot be profiled"),
        ({"model_type": "unheard-of"}, "transformers cannot load the model"),
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}, "has sliding windows of its own"),
        ({}, "transformers cannot load the tokenizer"),
    ):  # fmt: skip
        if change is not None:
            (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        assert run(tmp_path / "map.json", *words, "--load-format", "dummy", model=tmp_path) == 2
        assert message in capsys.readouterr().err
    assert run(tmp_path / "map.json", *words, model=tmp_path) == 2
    assert "transformers cannot load the model" in capsys.readouterr().err
    assert run(tmp_path / "absent" / "map.json", *words) == 2
    assert "--out: there is no directory" in capsys.readouterr().err


def test_weights_in_place_of_others_are_measured_anew(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    words = ["--data", "tasks", "--tasks", "lookup", "--lengths", 170, "--n", 1, "--methods", "mass", "--target-kv", 1]
    out = tmp_path / "map.json"
    assert run(out, *words, *QUICK, model=model) == 0
    lines = (tmp_path / "map.json.work").read_text().count("\n")
    (model / "model.safetensors").touch()
    assert run(out, *words, *QUICK, model=model) == 0
    assert (tmp_path / "map.json.work").read_text().count("\n") == 2 * lines
    assert run(out, *words, *QUICK, "--fresh", model=model) == 0
    assert (tmp_path / "map.json.work").read_text().count("\n") == lines


def test_memory_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(start, "profile_model", full)
    assert run(tmp_path / "map.json", "--data", "tasks", "--target-kv", 0.5) == 2
    assert "the GPU's memory is too small: give a smaller --chunk" in capsys.readouterr().err
