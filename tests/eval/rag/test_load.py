# SPDX-License-Identifier: Apache-2.0
"""One request and many against a fake server: times, what is sent to which side, closed and open loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eval.rag import client
from eval.rag.client import Answer, Client, make_body
from eval.rag.load import Load, Record, Runner
from eval.rag.task_corpus import TaskCorpus
from eval.rag.traffic import Dialogue, Prompt, Shape, make_arrivals, make_dialogues
from eval.tasks.vocabulary import END, encode, token_id
from redknot_sglang.errors import CliError
from tests.eval.rag.fake_native import FakeNative, Reply, fake_native, segmented_report

CORPUS = TaskCorpus(8, 96, seed=1)
END_ID = token_id(END)
STOPPED = {"type": "stop", "matched": END_ID}
LOAD = Load(concurrency=2, rate=None, answer_tokens=8, scored=True, seed=1)
POLICY = "boundary:2"


def ask(url: str, body: dict[str, Any]) -> Answer:
    async def run() -> Answer:
        async with Client(url, timeout=60) as asking:
            return await asking.ask(body)

    return asyncio.run(run())


def run(
    server: FakeNative, dialogues: list[Dialogue], policy: str | None = None, load: Load = LOAD, warm_up: bool = False
) -> list[Record]:
    async def go() -> list[Record]:
        async with Client(server.url, timeout=60) as asking:
            runner = Runner(asking, CORPUS, policy, load)
            if warm_up:
                await runner.wake()
                await runner.show_documents(3)
                return []
            return await runner.run(dialogues)

    return asyncio.run(go())


def dialogues(turns: int, requests: int) -> list[Dialogue]:
    return make_dialogues(CORPUS, "multiturn", Shape(turns, 2), requests, seed=1)


def known(body: dict[str, Any], made: list[Dialogue]) -> tuple[int, ...]:
    """The right answer and the end marker, whichever turn asks."""
    for dialogue in made:
        for turn in dialogue:
            tail = [*turn.question.ids, *CORPUS.frame.answer]
            if body["input_ids"][-len(tail) :] == tail:
                return (*encode(turn.question.answer or ""), END_ID)
    raise AssertionError("a question that nobody asked")


def test_the_first_token_is_timed_when_it_streams_in(monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[float] = []
    noted, waited = threading.Event(), list[bool]()

    def clock() -> float:
        readings.append(float(len(readings)))
        if len(readings) == 2:
            noted.set()
        return readings[-1]

    # The answer goes on only when the client has read its clock for the second time.
    monkeypatch.setattr(client, "time", SimpleNamespace(perf_counter=clock))
    reply = Reply((11, 12, 13), after_first=lambda: waited.append(noted.wait(10)))
    with fake_native(lambda body: reply) as server:
        answer = ask(server.url, make_body(Prompt([5, 6, 7], [0, 2]), None, 3, ignore_end=True))
    assert waited == [True]
    assert (answer.sent, answer.first_token, answer.finished) == (0.0, 1.0, 2.0)
    assert answer.error is None and answer.ids == [11, 12, 13] and answer.meta["completion_tokens"] == 3


def test_the_end_marker_belongs_to_no_answer() -> None:
    body = make_body(Prompt([5], []), None, 8, ignore_end=False)
    with fake_native(lambda body: Reply((11, END_ID), STOPPED)) as server:
        assert ask(server.url, body).ids == [11]
    with fake_native(lambda body: Reply((11, END_ID), {"type": "length"})) as server:
        assert ask(server.url, body).ids == [11, END_ID]


def test_both_sides_get_the_same_request_but_for_custom_params() -> None:
    prompt = Prompt([5, 6, 7], [0, 2])
    stock, redknot = (make_body(prompt, policy, 4, ignore_end=False) for policy in (None, "blend:0.05"))
    params = redknot["sampling_params"].pop("custom_params")
    assert stock == redknot
    assert params == {"redknot_mode": "segmented", "redknot_segments": [0, 2], "redknot_repair": "blend:0.05"}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply((), status=400), "HTTP 400.*refused by the test"),
        (Reply(()), "ended before"),
        (Reply((1,), {"type": "abort", "message": "no room"}), "no room"),
    ],
)
def test_a_failed_request_is_reported(reply: Reply, words: str) -> None:
    with fake_native(lambda body: reply) as server:
        answer = ask(server.url, make_body(Prompt([5], []), None, 1, ignore_end=True))
    assert answer.error is not None and answer.ids == [] and answer.meta == {}
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(answer.error)


def test_a_server_that_is_not_there_is_reported() -> None:
    answer = ask("http://127.0.0.1:1", make_body(Prompt([5], []), None, 1, ignore_end=True))
    assert answer.error is not None and "127.0.0.1" in answer.error


def test_prompts_of_both_sides_are_the_same_and_hold_the_answers_received() -> None:
    made = dialogues(turns=3, requests=6)
    with fake_native(lambda body: Reply(known(body, made), STOPPED, cached=7)) as stock:
        plain = run(stock, made)
    with fake_native(lambda body: Reply(known(body, made), STOPPED, 7, segmented_report(body))) as redknot:
        segmented = run(redknot, made, POLICY)
    assert [r.prompt for r in plain] == [r.prompt for r in segmented]
    sent = [sorted(str(body["input_ids"]) for body in server.bodies) for server in (stock, redknot)]
    assert sent[0] == sent[1] and len(sent[0]) == 6
    assert all(record.right for record in plain + segmented)
    for dialogue in made:
        second = [*dialogue[0].question.ids, *CORPUS.frame.answer, *encode(dialogue[0].question.answer or "")]
        text = str([*second, *CORPUS.frame.following])[1:-1]
        assert sum(text in str(body["input_ids"]) for body in stock.bodies) == 2
    assert {(r.reused, r.computed - r.prompt_tokens) for r in plain} == {(7, -7)}
    first = segmented[0]
    assert (first.relocated, first.repaired, first.reused) == (190, 2, 190)
    assert first.computed == first.prompt_tokens - 190


def test_a_wrong_answer_is_not_right_and_a_fixed_length_is_not_scored() -> None:
    made = dialogues(turns=1, requests=2)
    with fake_native(lambda body: Reply((5, END_ID), STOPPED)) as server:
        assert [record.right for record in run(server, made)] == [False, False]
    fixed = Load(2, None, answer_tokens=2, scored=False, seed=1)
    with fake_native(lambda body: Reply((5, 6))) as server:
        assert [record.right for record in run(server, made, load=fixed)] == [None, None]
        assert all(body["sampling_params"]["ignore_eos"] for body in server.bodies)


def together(count: int) -> Callable[[dict[str, Any]], Reply]:
    """Answers no request before `count` are there."""
    barrier = threading.Barrier(count, timeout=20)

    def answer(body: dict[str, Any]) -> Reply:
        barrier.wait()
        return Reply((5,))

    return answer


def test_closed_loop_keeps_as_many_dialogues_under_way() -> None:
    with fake_native(together(2)) as server:
        records = run(server, dialogues(turns=2, requests=8))
    assert server.peak == 2
    assert [(r.dialogue, r.turn, r.error, r.late_s) for r in records] == [
        (dialogue, turn, None, 0.0) for dialogue in range(4) for turn in range(2)
    ]


def test_open_loop_sends_when_requests_arrive_and_waits_for_no_answer() -> None:
    load = Load(None, rate=80.0, answer_tokens=1, scored=False, seed=3)
    with fake_native(together(12)) as server:
        records = run(server, dialogues(turns=1, requests=12), load=load)
    assert server.peak == 12
    for record, due in zip(records, make_arrivals(12, 80.0, 3), strict=True):
        # The event loop may wake up a tick of its clock early.
        assert record.error is None and record.late_s > -0.01
        assert record.start_s == pytest.approx(due + record.late_s)


def test_a_rate_of_requests_is_shared_by_the_turns_of_dialogues() -> None:
    load = Load(None, rate=6.0, answer_tokens=1, scored=False, seed=3)
    assert load.arrivals(dialogues(turns=3, requests=12)) == make_arrivals(4, 2.0, 3)


def test_a_dialogue_ends_with_a_turn_that_fails() -> None:
    made = dialogues(turns=3, requests=3)
    replies = iter([Reply((5,)), Reply((), status=503)])
    with fake_native(lambda body: next(replies)) as server:
        first, second = run(server, made)
    assert first.error is None and second.error is not None and "503" in second.error


@pytest.mark.parametrize("policy", [None, POLICY])
def test_the_wrong_kind_of_server_is_an_error(policy: str | None) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        return Reply((5,), report=None if policy else {"mode": "exact"})

    with fake_native(answer) as server:
        (record,) = run(server, dialogues(1, 1), policy)
        with pytest.raises(CliError, match="warm-up failed.*--redknot"):
            run(server, [], policy, warm_up=True)
    assert record.error is not None and "--redknot" in record.error


def test_the_warm_up_wakes_the_server_and_shows_all_documents() -> None:
    with fake_native(lambda body: Reply((5,), report=segmented_report(body))) as server:
        run(server, [], POLICY, warm_up=True)
    wake, *shown = (body["sampling_params"]["custom_params"]["redknot_segments"] for body in server.bodies)
    assert len(wake) == 2 and [len(offsets) // 2 for offsets in shown] == [3, 3, 2]
