# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from typing import Any

import pytest

from eval.demo.chart import draw
from eval.demo.figures import Figures, collect, rows, table
from eval.demo.results import FrontendResult, TurnResult
from eval.demo.settings import MODEL, REDKNOT, STOCK, Settings
from redknot_sglang.measure.client import Answer

SETTINGS = Settings(device="cpu")
FIGURES = {
    STOCK: Figures(STOCK, 40, 44, 0.8, 0.1, 40 * 2**20, 6, 100.0),
    REDKNOT: Figures(REDKNOT, 41, 44, 0.4, 0.7, 16 * 2**20, 24, 90.0),
}


def answer(ttft: float, cached: int | None = None, error: str | None = None) -> Answer:
    return Answer("x", 10.0, 10.0 + ttft, 12.0, 1000, cached, error)


def test_bytes_per_token_is_both_k_and_v_of_every_layer_and_kv_head() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    rows_per_token = config["num_hidden_layers"] * config["num_key_value_heads"]
    assert SETTINGS.bytes_per_token == rows_per_token * config["head_dim"] * 2 * 4
    assert replace(SETTINGS, device="cuda").bytes_per_token * 2 == SETTINGS.bytes_per_token


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_servers_get_the_same_flags_and_the_same_bytes(device: str) -> None:
    settings = replace(SETTINGS, device=device)
    stock, redknot = settings.server_flags(STOCK), settings.server_flags(REDKNOT)
    assert set(stock) - set(redknot) == {f"--max-total-tokens={settings.kv_tokens}"}
    only_redknot = {flag.split("=")[0]: flag for flag in set(redknot) - set(stock)}
    assert set(only_redknot) == {
        "--redknot",
        "--redknot-head-map",
        "--redknot-kv-budget",
        "--redknot-context-length",
    }
    budget = int(only_redknot["--redknot-kv-budget"].split("=")[1])
    assert budget == settings.kv_tokens * settings.bytes_per_token


def test_the_budget_keeps_half_of_the_conversations() -> None:
    assert SETTINGS.kv_tokens * 2 == SETTINGS.conversations * SETTINGS.context
    assert SETTINGS.context > SETTINGS.length


def test_stock_pays_for_every_token_and_redknot_says_what_it_pays() -> None:
    meta: dict[str, Any] = {"prompt_tokens": 90, "completion_tokens": 10}
    turns = [TurnResult("lookup", right, answer(ttft, 250)) for right, ttft in ((True, 0.1), (False, 0.3))]
    stock = collect(STOCK, SETTINGS, turns, [FrontendResult(3, 4, meta)], 5, 1.0)
    assert (stock.right, stock.asked, stock.fit) == (4, 6, 5)
    assert stock.kv_bytes == 100 * SETTINGS.bytes_per_token
    assert (stock.ttft, stock.cached) == (pytest.approx(0.2), 0.25)
    reported = {**meta, "redknot": {"kv_bytes": 777}}
    assert collect(REDKNOT, SETTINGS, turns, [FrontendResult(3, 4, reported)], 5, 1.0).kv_bytes == 777
    with pytest.raises(RuntimeError, match="without meta_info.redknot"):
        collect(REDKNOT, SETTINGS, turns, [FrontendResult(3, 4, meta)], 5, 1.0)


def test_nothing_cached_is_zero_and_a_failed_turn_stops_the_demo() -> None:
    program = FrontendResult(1, 1, {"prompt_tokens": 1, "completion_tokens": 1})
    assert collect(STOCK, SETTINGS, [TurnResult("t", True, answer(0.1))], [program], 1, 1.0).cached == 0.0
    with pytest.raises(RuntimeError, match="failed to answer: out of memory"):
        collect(STOCK, SETTINGS, [TurnResult("t", False, answer(0.1, error="out of memory"))], [program], 1, 1.0)


def test_the_table_compares_the_servers() -> None:
    assert [row[1:] for row in rows(FIGURES, SETTINGS)] == [
        ["40/44 = 90.9 %", "41/44 = 93.2 %", "+2.3 points"],
        ["800 ms", "400 ms", "0.50x"],
        ["10.0 %", "70.0 %", "7.00x"],
        ["40.0 MiB", "16.0 MiB", "0.40x"],
        ["6", ">= 24", ">= 4.00x"],
    ]
    assert table(FIGURES, SETTINGS).splitlines()[0].split("  ")[-1] == "ratio"


def test_a_server_that_cached_nothing_has_no_ratio() -> None:
    found = {**FIGURES, STOCK: replace(FIGURES[STOCK], cached=0.0)}
    assert rows(found, SETTINGS)[2][1:] == ["0.0 %", "70.0 %", "-"]


def test_the_picture_shows_bars_in_proportion() -> None:
    image = draw(FIGURES, SETTINGS)
    floor = image.height - 61
    # The second panel holds the times: stock takes twice as long.
    heights = []
    for x in (340 + 5, 340 + 110 + 5):
        color, y = image.getpixel((x, floor)), floor
        while image.getpixel((x, y)) == color:
            y -= 1
        heights.append(floor - y)
    assert heights[0] == pytest.approx(2 * heights[1], abs=2)
    assert heights[0] > 150
