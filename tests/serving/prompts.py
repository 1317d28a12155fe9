# SPDX-License-Identifier: Apache-2.0
"""Prompts of exact lengths: the embedded model's own kind of text, torn apart by runs of random tokens."""

from __future__ import annotations

import random
from functools import cache

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eval.tasks import TASKS, make_example, messages
from tests.serving.harness import MODEL

# Ids below are the tokenizer's special tokens; the model's vocabulary ends at the second number.
ORDINARY_TOKENS = range(300, 2000)
_TEXT_LENGTH = 480


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The embedded model's tokenizer."""
    return AutoTokenizer.from_pretrained(MODEL)


def noise(rng: random.Random, length: int) -> list[int]:
    """`length` random tokens."""
    return [rng.choice(ORDINARY_TOKENS) for _ in range(length)]


def text(rng: random.Random) -> list[int]:
    """Tokens of one evaluation prompt of a random task, about 500."""
    example = make_example(rng.choice(sorted(TASKS)), _TEXT_LENGTH, rng.randrange(1 << 20))
    chat = tokenizer().apply_chat_template(messages(example), tokenize=False, add_generation_prompt=True)
    return list(tokenizer().encode(chat, add_special_tokens=False))


def mixed(rng: random.Random, length: int) -> list[int]:
    """Exactly `length` tokens: runs of noise and pieces of text in turn, noise first: two prompts share no prefix."""
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += noise(rng, rng.randrange(2, 120)) + text(rng)
    return tokens[:length]
