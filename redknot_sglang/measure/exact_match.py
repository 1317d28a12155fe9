# SPDX-License-Identifier: Apache-2.0
"""Measures a server on generated tasks: share of answers that match exactly, and time to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redknot_sglang.errors import CliError
from redknot_sglang.measure.task_result import TaskResult
from redknot_sglang.measure.tasks import TaskPackage, is_right, right_answers

if TYPE_CHECKING:
    from redknot_sglang.measure.client import Answer, Client

MODES = ("completions", "chat")


@dataclass(frozen=True)
class Options:
    """What to ask, and of which server.

    url: address, with or without /v1.
    length: tokens of a prompt.
    n: examples of each task.
    seed: seed of the first of them; the others follow.
    concurrency: requests in flight.
    mode: one of MODES, the endpoint to ask.
    max_tokens: tokens of an answer at most.
    model: name to ask for, or None for the first that the server lists.
    api_key: sent with every request.
    timeout: seconds to wait for an answer.
    """

    url: str
    length: int
    n: int
    seed: int
    concurrency: int
    mode: str
    max_tokens: int
    model: str | None = None
    api_key: str = "none"
    timeout: float = 600


async def measure_tasks(options: Options, tasks: TaskPackage, names: Sequence[str]) -> tuple[str, list[TaskResult]]:
    """Ask the tasks one after the other.

    options: what to ask, and of which server.
    tasks: the task package.
    names: tasks of it.
    Returns the model's name and a result for each task. Raises CliError if the server does not answer, or a task cannot make
    such an example.
    """
    # The client is loaded when a server is asked, so that commands are parsed without it.
    from redknot_sglang.measure.client import Client

    async with Client(options.url, model=options.model, api_key=options.api_key, timeout=options.timeout) as client:
        model = await client.model()
        return model, [await _measure_task(options, tasks, name, client) for name in names]


async def _measure_task(options: Options, tasks: TaskPackage, name: str, client: Client) -> TaskResult:
    from tqdm import tqdm

    from redknot_sglang.measure.client import Request, ask_all

    seeds = range(options.seed, options.seed + options.n)
    prompt_of = tasks.render if options.mode == "completions" else tasks.messages
    try:
        # All are made before the first request: meanwhile the event loop stands still and would note texts too late.
        examples = [tasks.make_example(name, options.length, seed) for seed in seeds]
    except ValueError as error:
        raise CliError(f"task {name}: {error}") from error
    requests = [Request(prompt_of(example), options.max_tokens) for example in examples]
    with tqdm(total=options.n, desc=name, unit="request", leave=False, disable=None) as bar:
        answers = await ask_all(client, requests, options.concurrency, lambda _: bar.update())
    wrong = [
        {"seed": seed, "expected": _expected(example), "got": answer.text, "error": answer.error}
        for seed, example, answer in zip(seeds, examples, answers, strict=True)
        if answer.error is not None or not is_right(tasks, example, answer.text)
    ]
    return _result(name, answers, wrong)


def _result(name: str, answers: Sequence[Answer], wrong: list[dict[str, Any]]) -> TaskResult:
    from redknot_sglang.measure.client import cached_share

    failed = [answer.error for answer in answers if answer.error is not None]
    complete = [answer for answer in answers if answer.error is None]
    counts = [answer.prompt_tokens for answer in complete if answer.prompt_tokens is not None]
    return TaskResult(
        task=name,
        n=len(answers),
        correct=len(answers) - len(wrong),
        errors=len(failed),
        first_error=failed[0] if failed else None,
        ttft=[answer.ttft for answer in complete],
        prompt_tokens=sum(counts) / len(counts) if counts else None,
        cached=cached_share(complete),
        wrong=wrong,
    )


def _expected(example: Any) -> str | list[str] | None:
    """The right answer as a result file shows it: a list if several are right, None if the example names none."""
    answers = right_answers(example)
    if answers is None:
        return None
    return answers[0] if len(answers) == 1 else list(answers)
