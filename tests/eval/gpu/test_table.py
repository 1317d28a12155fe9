# SPDX-License-Identifier: Apache-2.0
"""The GPU tables and the chart, from results made up here; and that docs/measurements.md holds what the committed results give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.gpu.chart import draw
from eval.gpu.results import Cell
from eval.gpu.table import PART, rows, tables
from eval.gpu.table import read_all as read_results
from eval.marked import block, with_block
from redknot_sglang.errors import CliError

BEGIN, END = "<!-- bench-gpu:begin -->", "<!-- bench-gpu:end -->"
ROOT = Path(__file__).resolve().parents[3]
H200, H100 = "NVIDIA H200, 143771 MiB", "NVIDIA H100 80GB HBM3, 81559 MiB"


def result(*runs: tuple[str, list[Cell]], shape: str = "qwen3-8b") -> dict[str, Any]:
    """A result file's content with these runs."""
    cells = [{"run": number, **cell.as_json()} for number, (_, found) in enumerate(runs) for cell in found]
    heads = [{"shape": shape, "hardware": hardware, "errors": []} for hardware, _ in runs]
    return {"benchmark": "bench_gpu", "runs": heads, "cells": cells}


def cold(side: str, length: int, *seconds: float) -> Cell:
    return Cell("cold", side, "", length, "s", seconds)


def held(side: str, count: int) -> Cell:
    return Cell("concurrency", side, "24 GiB", 32768, "requests", [count], {"kv_bytes": 24 * 2**30})


def load(side: str, case: str, rate: float, broke: float | None = None) -> Cell:
    details = {"limit_s": 5.0, "failed_rate": broke, "probes": [{"n": 30}, {"n": 12}]}
    return Cell("load", side, case, 32768, "requests/s", [rate], details)


FIRST = [
    cold("stock", 32768, 1.0, 1.2, 1.4),
    cold("one_of_eight", 32768, 0.6, 0.5, 0.7),
    cold("all_global", 32768, 1.2, 1.2, 1.3),
    cold("rho.25-w1024", 32768, 0.8, 0.8, 0.8),
    Cell("decode", "stock", "batch 64", 8192, "s/step", [0.02] * 5, {"distinct_prompts": 18}),
    Cell("decode", "one_of_eight", "batch 64", 8192, "s/step", [0.01] * 5, {"distinct_prompts": 18}),
    Cell("decode", "stock", "batch 8", 8192, "s/step", [0.01] * 5, {"distinct_prompts": 8}),
    Cell("decode", "one_of_eight", "batch 8", 8192, "s/step", [0.01] * 5, {"distinct_prompts": 8}),
    Cell("segments", "stock", "", 32768, "s", [1.31] * 5, {}),
    Cell("segments", "one_of_eight", "boundary:16", 32768, "s", [0.0655] * 5, {}),
    Cell("prefix", "one_of_eight", "+128", 32768, "s", [0.03] * 5, {}),
    Cell("kernels", "attention", "", 0, "s", [40.0], {}),
]
SECOND = [
    held("stock", 5),
    held("one_of_eight", 34),
    load("stock", "", 0.5, 0.8),
    load("one_of_eight", "boundary:16", 4.0),
]


def test_one_line_for_what_has_stock_beside_it() -> None:
    text = tables([result((H200, FIRST), (H200, SECOND))])
    assert text.splitlines() == [
        "| qwen3-8b, NVIDIA H200 | stock | `one_of_eight` | `all_global` |",
        "|---|---|---|---|",
        "| cold prompt of 32K tokens, time to first token | 1.20 s | 600 ms, 2.00x | 1.20 s, 1.00x |",
        "| cached documents in a new order, 32K tokens, `boundary:16`, time to first token | 1.31 s | 66 ms, 20.0x |  |",
        "| decode step, batch 8, 8K tokens each | 10.00 ms | 10.00 ms, 1.00x |  |",
        "| decode step, batch 64, 8K tokens each, all of 18 cached prompts | 20.00 ms | 10.00 ms, 2.00x |  |",
        "| requests of 32K tokens held at once in 24 GiB of KV | 5 | 34, 6.80x |  |",
        "| requests served a second at the highest rate tried with p99 of the time to first token under 5 s, 32K tokens of "
        "cached documents, `boundary:16` (12 or more in a probe; stock broke it at 0.80) | 0.50 | 4.00, at least 5.0x |  |",
        "",
        "Times are medians of at least 3.",
        "",
        "| qwen3-8b, NVIDIA H200: cold prompt, time to first token | 32K |",
        "|---|---|",
        "| `rho.25-w1024` | 800 ms, 1.50x |",
    ]


def test_under_load_a_side_that_never_broke_the_limit_gives_no_bound() -> None:
    text = tables([result((H200, [load("stock", "", 0.5), load("one_of_eight", "boundary:16", 4.0, 5.0)]))])
    assert "(12 or more in a probe) | 0.50 | 4.00, 8.0x |" in text


def test_ratios_are_of_one_run_and_devices_are_kept_apart() -> None:
    early = (H200, [cold("stock", 8192, 4.0), cold("one_of_eight", 8192, 1.0)])
    late = (H200, [cold("stock", 8192, 3.0), cold("one_of_eight", 8192, 1.5), cold("all_global", 8192, 3.0)])
    alone = (H200, [cold("one_of_eight", 8192, 0.001)])
    other = (H100, [cold("stock", 8192, 9.0), cold("one_of_eight", 8192, 3.0)])
    data = result(early, late, alone, other)
    found = rows([data], "qwen3-8b", "NVIDIA H200")[("cold", 8192, "")]
    assert {side: (cell["median"], cell["stock"]["median"]) for side, cell in found.items()} == {
        "one_of_eight": (1.5, 3.0),
        "all_global": (3.0, 3.0),
    }
    text = tables([data])
    assert "| 3.00 s | 1.50 s, 2.00x | 3.00 s, 1.00x |" in text and "| 9.00 s | 3.00 s, 3.00x |" in text
    assert text.count("NVIDIA H200") == text.count("NVIDIA H100 80GB HBM3") == 1
    assert draw(data).height > draw(result(early)).height


def test_what_is_kept_for_the_record_is_not_shown() -> None:
    data = result((H200, [cold("stock", 8192, 3.0), cold("one_of_eight", 8192, 1.0)]))
    assert "3.00x" in tables([data])
    data["cells"][1]["superseded"] = "the clock was wrong"
    assert tables([data]) == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0.5, "2.00x"), (0.01, "100x"), (0.0123, "81.3x"), (4.0, "0.25x")])
def test_ratios_have_three_digits(seconds: float, shown: str) -> None:
    assert f"{shown} |" in tables([result((H200, [cold("stock", 8192, 1.0), cold("one_of_eight", 8192, seconds)]))])


def test_nothing_to_compare_gives_no_table_and_still_a_picture() -> None:
    data = result((H200, [cold("stock", 8192, 1.0)]))
    assert tables([data]) == "" and block(PART, "") == f"{BEGIN}\n{END}"
    assert draw(data).size == (1240, 76 + 420)


def test_the_chart_has_a_row_of_bars_only_for_a_device_with_figures_for_it() -> None:
    times = [cold("stock", 8192, 1.0), cold("one_of_eight", 8192, 0.5)]
    assert draw(result((H200, times))).height == 76 + 420
    assert (
        draw(result((H200, times), (H100, [*times, held("stock", 5), held("one_of_eight", 34)]))).height == 76 + 3 * 420
    )


def test_the_chart_has_every_side_in_its_colour() -> None:
    def colors(data: dict[str, Any]) -> set[Any]:
        return {color for _, color in draw(data).getcolors(2**20) or []}

    marks = [(120, 126, 136), (196, 52, 52), (38, 98, 168), (226, 148, 32)]
    made = cold("rho.25-w1024", 32768, 0.8)
    assert colors(result((H200, FIRST), (H200, SECOND))).intersection(marks) == set(marks[:3]), "no generated map"
    assert colors(result((H200, [FIRST[0], made]))).intersection(marks) == set(marks[:2]), "unless there is no other"


def test_the_command_writes_between_the_markers(tmp_path: Path) -> None:
    files = [tmp_path / "gpu_a.json", tmp_path / "gpu_other.json", tmp_path / "page.md"]
    files[0].write_text(json.dumps(result((H200, FIRST))))
    files[1].write_text("{}")
    files[2].write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    words = [*map(str, files[:2]), "--page", str(files[2])]
    subprocess.run([sys.executable, "-m", "eval.gpu.table", *words], check=True, cwd=ROOT)
    text = files[2].read_text()
    assert text == f"before\n{BEGIN}\n{tables([result((H200, FIRST))])}\n{END}\nafter\n"
    assert with_block(text, PART, "x") == f"before\n{BEGIN}\nx\n{END}\nafter\n"
    with pytest.raises(CliError, match="needs one line"):
        with_block("no markers", PART, "x")


def test_the_page_holds_what_the_committed_results_give() -> None:
    page = (ROOT / "docs" / "measurements.md").read_text()
    text = tables(read_results((ROOT / "eval" / "results").glob("gpu_*.json.xz")))
    assert with_block(page, PART, text) == page, (
        "run `python -m eval.gpu.table eval/results/gpu_*.json.xz --page docs/measurements.md`"
    )
