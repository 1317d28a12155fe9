# SPDX-License-Identifier: Apache-2.0
"""By what the router tells documents and beginnings of prompts apart: keys made of their content, without a tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

# Text or token ids.
Content = str | Sequence[int]

# Sizes of a block of a prompt's beginning. The text's is that of about as many tokens.
BLOCK_TOKENS, BLOCK_CHARACTERS = 256, 1024
# Blocks of a prompt that are told apart; what lies behind them only counts.
MOST_BLOCKS = 256
CHARACTERS_PER_TOKEN = BLOCK_CHARACTERS // BLOCK_TOKENS


@dataclass(frozen=True)
class Part:
    """A document, or a block of a prompt's beginning.

    key: 16 bytes. A block's is made of all blocks before it, too.
    start: where it begins in its prompt, in tokens.
    tokens: its length. Of text, the number of characters over four.
    """

    key: bytes
    start: int
    tokens: int

    @property
    def end(self) -> int:
        """Where it ends in its prompt, in tokens."""
        return self.start + self.tokens


@dataclass(frozen=True)
class Prompt:
    """What the router knows of one prompt.

    documents: in order; none in exact mode.
    blocks: of the prompt's beginning, documents included.
    tokens: length of it all.
    """

    documents: tuple[Part, ...]
    blocks: tuple[Part, ...]
    tokens: int


@dataclass(frozen=True)
class Wanted:
    """What a request wants computed.

    prompts: one, or those of a batch.
    answer_tokens: what its answers may take, as far as is known.
    """

    prompts: tuple[Prompt, ...] = ()
    answer_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and answers: the work if no server holds anything."""
        return sum(prompt.tokens for prompt in self.prompts) + self.answer_tokens

    @property
    def parts(self) -> Iterable[Part]:
        """All documents and blocks, those first that a server forgets first: of a path its end."""
        for prompt in self.prompts:
            yield from prompt.documents
            yield from reversed(prompt.blocks)


def tokens_of(content: Content) -> int:
    """Length in tokens; estimated for text."""
    return -(-len(content) // CHARACTERS_PER_TOKEN) if isinstance(content, str) else len(content)


def key_of(*fields: bytes | str) -> bytes:
    """16 bytes that stand for these fields in this order."""
    digest = blake2b(digest_size=16)
    for field in fields:
        data = field.encode("utf-8", "surrogatepass") if isinstance(field, str) else field
        # With the lengths, no two lists of fields are the same bytes.
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def bytes_of(content: Content) -> bytes:
    """Content as bytes, which differ for text and ids. Raises OverflowError or TypeError if it holds something else."""
    return b"t" + content.encode("utf-8", "surrogatepass") if isinstance(content, str) else b"i" + array("q", content)


def document_key(space: bytes, content: Content, lead: bytes = b"") -> bytes:
    """Key of a document.

    space: what tells requests apart that share nothing.
    content: of the document.
    lead: content before the first document, where documents are computed behind it; else empty.
    """
    return key_of("document", space, lead, bytes_of(content))


class Blocks:
    """Cuts the beginning of a prompt into blocks, each with a key of everything before it."""

    def __init__(self, space: bytes) -> None:
        """space: what tells requests apart that share nothing."""
        self._key = key_of("prompt", space)
        self._blocks: list[Part] = []
        self.tokens = 0

    def add(self, content: Content, kind: str = "") -> None:
        """Append a stretch of the prompt, which ends a block.

        kind: tells stretches of the same content apart, such as documents from other text.
        """
        size = BLOCK_CHARACTERS if isinstance(content, str) else BLOCK_TOKENS
        for at in range(0, len(content), size):
            block = content[at : at + size]
            tokens = tokens_of(block)
            if len(self._blocks) < MOST_BLOCKS:
                self._key = key_of(self._key, kind, bytes_of(block))
                self._blocks.append(Part(self._key, self.tokens, tokens))
            self.tokens += tokens

    @property
    def blocks(self) -> tuple[Part, ...]:
        """All blocks so far."""
        return tuple(self._blocks)
