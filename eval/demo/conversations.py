# SPDX-License-Identifier: Apache-2.0
"""Retrieval conversations through the OpenAI client, all of them under way at the same time."""

from __future__ import annotations

from eval.demo.results import TurnResult
from eval.demo.settings import ANSWER_TOKENS, Settings
from eval.tasks import Conversation, Example, Turn, make_conversation, score
from redknot_sglang.measure.client import Client, OnAnswer, Request, ask_all


def right(conversation: Conversation, turn: Turn, text: str) -> bool:
    """Whether `text` answers the turn exactly."""
    return score(Example(conversation.system, turn.documents, turn.question, turn.answer, turn.task), text)


async def run_conversations(client: Client, settings: Settings, on_answer: OnAnswer) -> list[TurnResult]:
    """Ask turn after turn of every conversation, each with the model's own earlier answers in the prompt.

    All conversations take a turn before any takes the next one, as many users at once do; so a prefix is used
    again only if it outlives the other conversations.
    """
    talks = [make_conversation(settings.length, settings.turns, seed) for seed in range(settings.conversations)]
    histories = [[{"role": "system", "content": talk.system}] for talk in talks]
    results: list[TurnResult] = []
    for number in range(settings.turns):
        for talk, history in zip(talks, histories, strict=True):
            history.append({"role": "user", "content": talk.turns[number].content()})
        requests = [Request(list(history), ANSWER_TOKENS) for history in histories]
        answers = await ask_all(client, requests, settings.concurrency, on_answer)
        for talk, history, answer in zip(talks, histories, answers, strict=True):
            turn = talk.turns[number]
            results.append(TurnResult(turn.task, right(talk, turn, answer.text), answer))
            history.append({"role": "assistant", "content": answer.text})
    return results
