# SPDX-License-Identifier: Apache-2.0
"""The same kind of conversation as a program in SGLang's frontend language, through the native endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sglang
from sglang.lang.chat_template import ChatTemplate, register_chat_template

from eval.demo.conversations import right
from eval.demo.results import FrontendResult
from eval.demo.settings import ANSWER_TOKENS, Settings
from eval.tasks import Conversation, make_conversation
from eval.tasks.vocabulary import ASSISTANT, BOS, END, SYSTEM, USER

_TEMPLATE = "redknot-embedded"
# Seeds of other conversations than those asked through the OpenAI client.
_FIRST_SEED = 1000


@sglang.function
def retrieval_chat(s: Any, conversation: Conversation) -> None:
    """A system prompt, then per turn the new documents with a question, and the answer."""
    s += sglang.system(conversation.system)
    for number, turn in enumerate(conversation.turns):
        s += sglang.user(turn.content())
        s += sglang.assistant(sglang.gen(f"answer{number}", max_tokens=ANSWER_TOKENS, temperature=0))


def run_frontend(url: str, settings: Settings, tick: Callable[[], object]) -> list[FrontendResult]:
    """Run the program once per conversation against the server at `url` (without /v1).

    Raises RuntimeError where a request fails.
    """
    # The frontend knows public models by name; this is the embedded model's own chat template in its terms.
    roles = {"system": (BOS + SYSTEM, END), "user": (USER, END), "assistant": (ASSISTANT, END)}
    register_chat_template(ChatTemplate(_TEMPLATE, default_system_prompt=None, role_prefix_and_suffix=roles))
    backend = sglang.RuntimeEndpoint(url, chat_template_name=_TEMPLATE)
    results = []
    for seed in range(_FIRST_SEED, _FIRST_SEED + settings.frontend_conversations):
        talk = make_conversation(settings.length, settings.turns, seed)
        state = retrieval_chat.run(conversation=talk, backend=backend)
        if (problem := state.error()) is not None:
            raise RuntimeError(f"the frontend program failed: {problem}") from problem
        answers = [state[f"answer{number}"] for number in range(settings.turns)]
        hits = sum(right(talk, turn, text) for turn, text in zip(talk.turns, answers, strict=True))
        results.append(FrontendResult(hits, settings.turns, state.get_meta_info(f"answer{settings.turns - 1}")))
        for _ in answers:
            tick()
    return results
