# SPDX-License-Identifier: Apache-2.0
"""What tells the code apart that made a result."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from eval.provenance import ROOT, origin, sources


def test_a_result_names_code_options_and_time() -> None:
    head = origin(Namespace(json=Path("/somewhere/out.json"), n=5))
    assert head["options"] == {"json": "out.json", "n": 5}
    assert head["code"]["sources"] == sources() and head["code"]["time"].endswith("+00:00")
    commit = head["code"]["commit"]
    told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    assert commit is None if told.returncode else commit.rstrip("+") == told.stdout.strip()


def test_the_digest_is_of_names_and_contents_of_python_files(tmp_path: Path) -> None:
    package, benchmarks = tmp_path / "redknot_sglang", tmp_path / "eval"
    for folder in (package, benchmarks):
        folder.mkdir()
    (package / "a.py").write_text("1")
    seen = {sources(tmp_path)}
    (package / "a.py").write_text("2")
    seen.add(sources(tmp_path))
    (package / "a.py").rename(package / "b.py")
    seen.add(sources(tmp_path))
    (benchmarks / "c.py").write_text("3")
    seen.add(sources(tmp_path))
    assert len(seen) == 4
    (benchmarks / "notes.md").write_text("4")
    assert sources(tmp_path) in seen


def test_the_command_prints_the_digest() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "eval.provenance"], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert told.stdout.strip() == sources()
