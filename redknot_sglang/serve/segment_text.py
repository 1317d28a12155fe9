# SPDX-License-Identifier: Apache-2.0
"""Tokenizes segments that come one by one just as they are tokenized between separators of a prompt.

Only then does a request find what was computed ahead of time. A *lead* is the text before a prompt's first segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError


class SegmentText:
    """Makes tokens of leads and segments.

    manager: SGLang's tokenizer manager, on which `hooks/v0_5_17/tokenizer.py` has noted the separator's and the special tokens.
    config: the server's settings.
    """

    def __init__(self, manager: Any, config: RedKnotConfig) -> None:
        self._tokenizer = manager.tokenizer
        self._separator: int | None = manager.redknot_separator
        self._special: frozenset[int] = getattr(manager, "redknot_special", frozenset())
        self._text = config.separator
        self._vocabulary: int = manager.model_config.vocab_size

    def lead(self, value: Any) -> list[int]:
        """Tokens of a lead, with those that the tokenizer puts in front of every prompt.

        value: text, or token ids, which are checked and returned.
        Raises RedKnotError.
        """
        if not isinstance(value, str):
            return self._ids("lead", value)
        return self._parts("lead", value + self._text, 1)[0]

    def segment(self, name: str, value: Any) -> list[int]:
        """Tokens of a segment.

        name: how errors call it.
        value: text, or token ids, which are checked and returned.
        Raises RedKnotError.
        """
        if not isinstance(value, str):
            return self._ids(name, value)
        tokens = self._parts(name, self._text + value + self._text, 2)[1]
        special = next((token for token in tokens if token in self._special), None)
        if special is not None:
            raise RedKnotError(
                f"{name} has the special token {self._tokenizer.convert_ids_to_tokens(special)} in it, and a text with one is "
                "not taken for a segment between separators: take it out, or give token ids for requests with offsets"
            )
        return tokens

    def _parts(self, name: str, prompt: str, separators: int) -> list[list[int]]:
        """The parts of a prompt that has as many separators, tokenized as SGLang tokenizes prompts."""
        if self._tokenizer is None:
            raise RedKnotError(f"{name} is text and this server has no tokenizer: give a list of token ids")
        parts: list[list[int]] = [[]]
        for token in self._tokenizer.encode(prompt):
            if token == self._separator:
                parts.append([])
            else:
                parts[-1].append(token)
        if len(parts) != separators + 1:
            raise RedKnotError(
                f"{name} has the separator {self._text} in it: give one part at a time, without separators"
            )
        return parts

    def _ids(self, name: str, value: Any) -> list[int]:
        if not isinstance(value, Sequence) or any(isinstance(i, bool) or not isinstance(i, int) for i in value):
            raise RedKnotError(f"{name} must be text or a list of token ids")
        wrong = next((token for token in value if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise RedKnotError(f"{name} has the token id {wrong}; give ids of this model, 0 to {self._vocabulary - 1}")
        if self._separator is not None and self._separator in value:
            raise RedKnotError(f"{name} has the separator's token {self._separator} in it: leave it out")
        return list(value)
