# SPDX-License-Identifier: Apache-2.0
"""Exact match of the model on the evaluation examples, in batches, dense and under its head map.

The gold answer is appended and every answer token must be the argmax at its place; greedy decoding gives the
gold answer exactly if that holds, so the figure is the exact match of greedy generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from multiprocessing.pool import Pool

import torch

from eval.tasks import TASKS, make_example, render
from eval.tasks.vocabulary import END, PAD, encode, token_id
from eval.train.attention import Layout, make_attention, make_dense_attention
from eval.train.model import AttentionFn, EmbeddedModel, read_out, rope_table

_HEADROOM = 64

Encoded = tuple[list[int], int, list[int]]


def encoded_example(task: str, length: int, seed: int) -> Encoded:
    """Token ids of prompt and answer, the prompt's token count, and the token counts of its documents."""
    example = make_example(task, length, seed)
    prompt = encode(render(example))
    sizes = [len(encode(document)) for document in example.documents]
    return prompt + encode(example.answer + END), len(prompt), sizes


def exact_match(
    model: EmbeddedModel,
    task: str,
    length: int,
    seeds: Iterable[int],
    mode: str,
    dtype: torch.dtype,
    batch_tokens: int,
    pool: Pool | None = None,
) -> float:
    """Share of the examples answered exactly.

    mode: `dense`, `mapped` (local heads see sink + window), or `isolated` (dense, each document by itself).
    """
    encode_seed = partial(encoded_example, task, length)
    examples = list(pool.map(encode_seed, seeds, chunksize=8) if pool else map(encode_seed, seeds))
    right = answered(model, examples, length, mode, dtype, batch_tokens)
    return sum(right) / len(right)


def answered(
    model: EmbeddedModel, examples: Sequence[Encoded], length: int, mode: str, dtype: torch.dtype, batch_tokens: int
) -> list[bool]:
    """Whether each of the examples, with prompts of `length` tokens, is answered exactly; `exact_match` has the modes."""
    padded = -(-(length + _HEADROOM) // model.config.window) * model.config.window
    size = max(1, batch_tokens // padded)
    parts = (_right(model, examples[i : i + size], padded, mode, dtype) for i in range(0, len(examples), size))
    return [right for part in parts for right in part]


@torch.no_grad()
def _right(model: EmbeddedModel, examples: Sequence[Encoded], padded: int, mode: str, dtype: torch.dtype) -> list[bool]:
    c, device = model.config, model.embedding.device
    tokens = torch.full((len(examples), padded + 1), token_id(PAD))
    answers = torch.zeros(len(examples), padded, dtype=torch.bool)
    for row, (ids, prompt, _) in enumerate(examples):
        tokens[row, : len(ids)] = torch.tensor(ids)
        answers[row, prompt - 1 : len(ids) - 1] = True
    tokens, answers = tokens.to(device), answers.to(device)
    cos, sin = (table.repeat(len(examples), 1) for table in rope_table(c, padded, device))
    attention = _attention(model, examples, padded, mode)
    x = model(tokens[:, :-1], cos, sin, attention, dtype).view(len(examples), padded, -1)
    guesses = read_out(c, x[answers], model.norm, model.embedding).argmax(-1)
    wrong = torch.zeros_like(answers)
    wrong[answers] = guesses != tokens[:, 1:][answers]
    right: list[bool] = (~wrong.any(1)).tolist()
    return right


def _attention(model: EmbeddedModel, examples: Sequence[Encoded], padded: int, mode: str) -> AttentionFn:
    if mode != "isolated":
        return make_attention(model.config, Layout(mapped=mode == "mapped"))
    documents = torch.zeros(len(examples), padded, dtype=torch.long)
    for row, (ids, prompt, sizes) in enumerate(examples):
        start = _documents_start(ids[:prompt])
        for number, size in enumerate(sizes, 1):
            documents[row, start : start + size] = number
            start += size
    return make_dense_attention(model.config, False, documents.to(model.embedding.device))


def _documents_start(prompt: list[int]) -> int:
    return prompt.index(token_id("<|user|>")) + 1


def table(
    model: EmbeddedModel,
    lengths: Iterable[int],
    count: int,
    modes: Iterable[str],
    dtype: torch.dtype,
    batch_tokens: int,
    pool: Pool | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Exact match as {mode: {length: {task: share}}} over the seeds 0 to `count` - 1."""
    return {
        mode: {
            str(length): {
                task: exact_match(model, task, length, range(count), mode, dtype, batch_tokens, pool) for task in TASKS
            }
            for length in lengths
        }
        for mode in modes
    }
