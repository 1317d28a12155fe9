# SPDX-License-Identifier: Apache-2.0
"""A dialogue over documents with an OpenAI client; later turns bring documents of their own.

    python -m examples.rag_openai --url http://127.0.0.1:30000

The server serves the embedded model: `python -m sglang.launch_server --model-path eval/model --redknot
--redknot-mode segmented --redknot-segment-length 300 --enable-cache-report`, on a CPU with the flags of docs/serving.md.
Documents that some earlier dialogue had, at whatever place, are not computed again.
"""

from __future__ import annotations

import argparse

from openai import OpenAI

from eval.tasks import make_conversation

SEPARATOR = "<|redknot_segment|>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Multi-turn retrieval with an OpenAI client.")
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--seed", type=int, default=1, help="which dialogue (%(default)s)")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    client = OpenAI(base_url=args.url + "/v1", api_key="none")
    talk = make_conversation(1200, args.turns, args.seed)
    messages = [{"role": "system", "content": talk.system}]
    for turn in talk.turns:
        # Each document, and the end of the last, is marked by the separator; that is all it takes.
        documents = "".join(SEPARATOR + document for document in turn.documents)
        content = f"{documents}{SEPARATOR if documents else ''}Question:\n{turn.question}"
        messages.append({"role": "user", "content": content})
        answer = client.chat.completions.create(
            model="default",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=64,
            temperature=0,
            extra_body={"custom_params": {"redknot_mode": "segmented"}},
        )
        text, usage = answer.choices[0].message.content or "", answer.usage
        assert usage is not None
        # SGLang leaves the details out where nothing was in the cache.
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        messages.append({"role": "assistant", "content": text})
        print(f"{len(turn.documents)} new documents. {turn.question.strip()}")
        print(f"  answer {text.strip()!r}, expected {turn.answer!r}")
        print(f"  {usage.prompt_tokens} prompt tokens, {cached} from the cache")


if __name__ == "__main__":
    main()
