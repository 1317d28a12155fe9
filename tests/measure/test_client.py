# SPDX-License-Identifier: Apache-2.0
import asyncio
from typing import Any

import pytest

from redknot_sglang.errors import CliError
from redknot_sglang.measure.client import Answer, Client, Prompt, Request, api_url, ask_all, cached_share
from tests.measure.fake_server import FakeServer, Reply, fake_server

MESSAGES = [{"role": "user", "content": "hi"}]


def ask(server: FakeServer, requests: list[Request], concurrency: int = 4) -> list[Answer]:
    async def run() -> list[Answer]:
        async with Client(server.url) as client:
            return await ask_all(client, requests, concurrency)

    return asyncio.run(run())


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_address_may_have_v1_or_not(url: str) -> None:
    assert api_url(url) == "http://h:1/v1"


@pytest.mark.parametrize("prompt", ["hi", MESSAGES])
def test_an_answer_has_text_counts_and_times(prompt: Prompt) -> None:
    with fake_server(lambda body: Reply(("Oslo", " Rome"), 12, 5, delay=0.2)) as server:
        (answer,) = ask(server, [Request(prompt, 7, {"ignore_eos": True})])
    assert (answer.text, answer.prompt_tokens, answer.cached_tokens, answer.error) == (
        "Oslo Rome",
        12,
        5,
        None,
    )
    assert 0.2 <= answer.ttft <= answer.finished - answer.sent
    assert answer.first_token <= answer.finished
    (body,) = server.bodies
    assert body["prompt" if isinstance(prompt, str) else "messages"] == prompt
    assert (body["model"], body["max_tokens"], body["temperature"], body["ignore_eos"]) == (
        "fake",
        7,
        0,
        True,
    )


def test_answers_keep_the_order_of_the_requests() -> None:
    def echo(body: dict[str, Any]) -> Reply:
        return Reply((body["prompt"],), delay=0.05 * (3 - int(body["prompt"])))

    with fake_server(echo) as server:
        answers = ask(server, [Request(str(i), 1) for i in range(4)])
    assert [answer.text for answer in answers] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_than_asked_for_are_in_flight(concurrency: int) -> None:
    with fake_server(lambda body: Reply(("x",), delay=0.1)) as server:
        ask(server, [Request("p", 1)] * 6, concurrency)
    assert server.peak == concurrency


def test_a_refused_request_is_reported_and_sent_only_once() -> None:
    with fake_server(lambda body: Reply(status=400 if body["prompt"] == "bad" else 200)) as server:
        good, bad = ask(server, [Request("good", 1), Request("bad", 1)])
    assert good.error is None
    assert bad.error is not None and "refused by the test" in bad.error
    assert len(server.bodies) == 2


def test_an_answer_without_text_has_the_time_of_its_end() -> None:
    with fake_server(lambda body: Reply(())) as server:
        (answer,) = ask(server, [Request("p", 1)])
    assert answer.text == "" and answer.first_token == answer.finished


def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(CliError, match="no OpenAI-compatible server answers at"):
        ask(FakeServer("http://127.0.0.1:1"), [Request("p", 1)])


def answer_with(prompt_tokens: int | None, cached_tokens: int | None) -> Answer:
    return Answer("", 0, 0, 0, prompt_tokens, cached_tokens)


@pytest.mark.parametrize(
    ("counts", "share"),
    [
        ([(10, None), (10, None)], None),
        ([(10, None), (30, 20)], 0.5),
        ([(None, None), (10, 10)], 1.0),
        ([], None),
    ],
)
def test_cached_share_is_unknown_only_if_never_reported(
    counts: list[tuple[int | None, int | None]], share: float | None
) -> None:
    assert cached_share(answer_with(*pair) for pair in counts) == share
