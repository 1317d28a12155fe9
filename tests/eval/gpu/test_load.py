# SPDX-License-Identifier: Apache-2.0
"""The search for the highest rate, and what a probe sends."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.gpu.load import ANSWER_TOKENS, Plan, Probe, measure, search
from tests.eval.rag.fake_native import Reply, fake_native, segmented_report

SMALL = Plan(documents=6, tokens=96, per_request=3, limit=20.0, seconds=0.2, refine=1, box=1.0)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 4))
def test_the_search_closes_in_on_the_highest_rate(capacity: float, start: float, refine: int) -> None:
    asked: list[float] = []

    def probe(rate: float) -> bool:
        asked.append(rate)
        return rate <= capacity

    found = search(probe, start, 1.3, refine, lambda: True)
    assert found.is_bracketed and found.kept <= capacity < found.failed
    assert {found.kept, found.failed} <= set(asked)
    assert found.failed / found.kept <= 1.3 ** (0.5**refine) * (1 + 1e-9)


@given(st.floats(0.01, 100), st.integers(1, 6))
def test_the_search_ends_when_the_time_is_over(capacity: float, probes: int) -> None:
    asked: list[float] = []

    def probe(rate: float) -> bool:
        asked.append(rate)
        return rate <= capacity

    found = search(probe, 1.0, 1.3, 50, lambda: len(asked) < probes)
    assert len(asked) == probes
    assert found.kept == max((rate for rate in asked if rate <= capacity), default=0.0)
    assert found.failed == min((rate for rate in asked if rate > capacity), default=math.inf)


def test_a_request_without_an_answer_is_late_beyond_any_limit() -> None:
    late = Probe(1.0, [0.1] * 99 + [math.inf], 1.0, 0, 2.0, 0.5)
    assert late.p99 == math.inf and late.as_json()["p99"] is None and late.as_json()["ttft"][-1] is None
    assert Probe(1.0, [float(i) for i in range(101)], 1.0, 0, 2.0, 0.5).p99 == 99.0


def test_a_side_is_shown_all_documents_and_probed_at_rising_rates() -> None:
    with fake_native(lambda body: Reply((5,) * body["sampling_params"]["max_new_tokens"], cached=4)) as stock:
        cell = measure(stock.url, "stock", None, SMALL, start=40.0)
    probes = cell.details["probes"]
    rates = [probe["rate"] for probe in probes]
    assert rates[0] == 40.0 and cell.details["kept_rate"] == max(rates) and cell.details["failed_rate"] is None
    assert cell.samples == [min(max(rates), probes[-1]["served"])]
    assert all(b == pytest.approx(1.3 * a) for a, b in zip(rates, rates[1:], strict=False))
    assert [probe["n"] for probe in probes] == [round(rate * 0.2) for rate in rates]
    # One to wake it, two that show six documents, then those that count.
    assert len(stock.bodies) == 3 + sum(probe["n"] for probe in probes) and stock.flushes == 1
    assert cell.step == "load" and cell.case == "" and cell.length == 3 * 96


def test_a_first_token_counts_though_the_answer_comes_too_late_to_be_waited_for() -> None:
    plan = Plan(documents=6, tokens=96, per_request=3, limit=0.5, seconds=0.2, box=0.0)

    def answer(body: dict[str, Any]) -> Reply:
        most = body["sampling_params"]["max_new_tokens"]
        # Only answers of a probe are slow: it gives up after twice the limit.
        return Reply((5,) * most, after_first=lambda: time.sleep(1.3 * (most == ANSWER_TOKENS)))

    with fake_native(answer) as stock:
        cell = measure(stock.url, "stock", None, plan, start=20.0)
    (probe,) = cell.details["probes"]
    assert probe["failed"] == probe["n"] == 4 and probe["p99"] < 0.5 and cell.details["kept_rate"] == 20.0
    assert probe["served"] > 10 and probe["cached_share"] == 0


def test_a_server_that_gives_no_token_in_time_keeps_no_rate() -> None:
    plan = Plan(documents=6, tokens=96, per_request=3, limit=0.2, seconds=0.2, box=0.0)

    def answer(body: dict[str, Any]) -> Reply:
        if (most := body["sampling_params"]["max_new_tokens"]) == ANSWER_TOKENS:
            time.sleep(0.6)
        return Reply((5,) * most)

    with fake_native(answer) as stock, pytest.raises(RuntimeError, match="p99 was over"):
        measure(stock.url, "stock", None, plan, start=20.0)


def test_the_first_rate_is_that_of_a_closed_loop() -> None:
    plan = Plan(documents=6, tokens=96, per_request=3, limit=20.0, seconds=0.01, box=0.0)
    with fake_native(
        lambda body: Reply((5,) * body["sampling_params"]["max_new_tokens"], report=segmented_report(body))
    ) as ours:
        cell = measure(ours.url, "m", "boundary:2", plan)
    assert len(cell.details["probes"]) == 1 and cell.case == "boundary:2" and ours.peak <= 8
    assert {body["sampling_params"]["custom_params"]["redknot_repair"] for body in ours.bodies} == {"boundary:2"}


def test_a_server_that_refuses_is_not_taken_for_a_slow_one() -> None:
    calls = iter(range(1000))

    def answer(body: dict[str, dict[str, int]]) -> Reply:
        return Reply((), status=500) if next(calls) == 5 else Reply((5,) * body["sampling_params"]["max_new_tokens"])

    with fake_native(answer) as stock, pytest.raises(RuntimeError, match="HTTP 500"):
        measure(stock.url, "stock", None, SMALL, start=40.0)
