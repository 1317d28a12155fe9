# SPDX-License-Identifier: Apache-2.0
"""The dialogue of rag_openai.py as a program in SGLang's frontend language.

    python -m examples.rag_frontend --url http://127.0.0.1:30000

Frontend programs send no `custom_params`: the server has to run with `--redknot-mode segmented`.
"""

from __future__ import annotations

import argparse
from typing import Any

import sglang
from sglang.lang.chat_template import ChatTemplate, register_chat_template

from eval.tasks import Conversation, make_conversation
from eval.tasks.vocabulary import ASSISTANT, BOS, END, SYSTEM, USER

SEPARATOR = "<|redknot_segment|>"


@sglang.function
def dialogue(s: Any, talk: Conversation) -> None:
    """A system prompt, then in each turn new documents, a question, and the answer."""
    s += sglang.system(talk.system)
    for number, turn in enumerate(talk.turns):
        documents = "".join(SEPARATOR + document for document in turn.documents)
        s += sglang.user(f"{documents}{SEPARATOR if documents else ''}Question:\n{turn.question}")
        s += sglang.assistant(sglang.gen(f"answer{number}", max_tokens=64, temperature=0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Multi-turn retrieval in SGLang's frontend language.")
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--seed", type=int, default=1, help="which dialogue (%(default)s)")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    # The frontend knows public models by name; this is the embedded model's own chat template.
    roles = {"system": (BOS + SYSTEM, END), "user": (USER, END), "assistant": (ASSISTANT, END)}
    register_chat_template(ChatTemplate("embedded", default_system_prompt=None, role_prefix_and_suffix=roles))
    backend = sglang.RuntimeEndpoint(args.url, chat_template_name="embedded")
    talk = make_conversation(1200, args.turns, args.seed)
    state = dialogue.run(talk=talk, backend=backend)
    if (problem := state.error()) is not None:
        raise SystemExit(f"the program failed: {problem}")
    for number, turn in enumerate(talk.turns):
        meta = state.get_meta_info(f"answer{number}")
        print(f"{len(turn.documents)} new documents. {turn.question.strip()}")
        print(f"  answer {state[f'answer{number}'].strip()!r}, expected {turn.answer!r}")
        print(f"  {meta['prompt_tokens']} prompt tokens, {meta['cached_tokens']} from the cache")


if __name__ == "__main__":
    main()
