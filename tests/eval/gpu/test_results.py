# SPDX-License-Identifier: Apache-2.0
"""The result file grows cell by cell and run by run, and names no folder of a machine."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from eval.gpu.results import Cell, Results, anonymous, chart_path, read
from redknot_sglang.errors import CliError

COLD = Cell("cold", "stock", "", 8192, "s", [0.3, 0.1, 0.2])


def test_every_cell_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    results = Results(path, append=False)
    results.start_run({"command": "first"})
    results.add(COLD)
    found = json.loads(path.read_text())
    assert found["cells"] == [
        {"run": 0, "step": "cold", "side": "stock", "case": "", "length": 8192, "unit": "s"}
        | {"samples": [0.3, 0.1, 0.2], "details": {}, "n": 3, "median": 0.2}
    ]
    results.fail("cold", 'File "/somewhere/else/eval/x.py", line 1')
    assert read(path)["runs"][0]["errors"] == [{"what": "cold", "error": 'File "x.py", line 1'}]  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_a_later_run_keeps_the_cells_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for number in range(2):
        results = Results(path, append=True)
        results.start_run({"command": str(number)})
        results.add_server("stock", {"flags": "--x"})
        results.add(COLD)
    found = json.loads(path.read_text())
    assert [run["command"] for run in found["runs"]] == ["0", "1"] and [cell["run"] for cell in found["cells"]] == [
        0,
        1,
    ]
    with pytest.raises(CliError, match="--append"):
        Results(path, append=False)


def test_a_compressed_file_grows_alike(tmp_path: Path) -> None:
    plain, path = tmp_path / "gpu.json", tmp_path / "gpu.json.xz"
    for each in (plain, path, path):
        results = Results(each, append=True)
        results.start_run({"command": "x"})
        results.add(COLD)
    assert len(json.loads(lzma.decompress(path.read_bytes()))["cells"]) == 2
    found = read(path)
    assert found is not None and found["cells"][0] == read(plain)["cells"][0]  # type: ignore[index]
    assert chart_path(path) == chart_path(plain) == tmp_path / "gpu.webp"
    path.write_bytes(b"not compressed")
    with pytest.raises(CliError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("text", ['{"cells": []}', "[1]"])
def test_another_file_is_not_added_to(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert read(path) is None
    with pytest.raises(CliError, match="not a result"):
        Results(path, append=True)
    path.write_text("{")
    with pytest.raises(CliError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--model-path=/a/b/eval/shapes/qwen3-8b --x", "--model-path=qwen3-8b --x"),
        ("see http://127.0.0.1:30000/generate", "see http://127.0.0.1:30000/generate"),
        ("--json eval/results/a.json /home/someone/b.json", "--json eval/results/a.json b.json"),
        ("tokens/s", "tokens/s"),
    ],
)
def test_absolute_paths_keep_their_last_part_only(text: str, shown: str) -> None:
    assert anonymous(text) == shown
