# SPDX-License-Identifier: Apache-2.0
"""The model's own answers as calibration data: what it answers to a prompt with all heads global is taken as the
example's answer.

Decoding is greedy, so nothing is drawn at random. K and V of all layers are held for one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.profile.data import Data, Example
from redknot_sglang.profile.model import ProfiledModel, Rows, dense
from redknot_sglang.profile.study import Study


def own_study(study: Study, tokens: int) -> Study:
    """The study with the model's own answers in place of the given ones.

    tokens: of an answer at most; it ends early with a token that ends the model's turn, which belongs to it.
    A prompt of plain text (`Data.source` is `text`) gets no answer: the second half of its own tokens is what is looked
    at. `Study.work` must not be that of a study of the given answers: it knows measurements by their settings only.
    Where the given answer stood in documents (`Example.holders`) is kept for retrieval heads.
    """
    if study.data.source == "text":
        return replace(study, data=_second_halves(study.data))
    ends = end_tokens(study.model.model)
    found = study.each(
        "own answers", lambda _, example: greedy_answer(study.model, prompt_of(example), tokens, ends), ["own", tokens]
    )
    examples = tuple(
        replace(example, ids=(*prompt_of(example), *answer), first=len(prompt_of(example)))
        for example, answer in zip(study.data.examples, found, strict=True)
    )
    return replace(study, data=replace(study.data, examples=examples))


def prompt_of(example: Example) -> tuple[int, ...]:
    """The tokens before the given answer; all of them where none is given."""
    return example.ids[: example.first] if example.has_answer else example.ids


def _second_halves(data: Data) -> Data:
    examples = (replace(example, first=max(1, len(example.ids) // 2)) for example in data.examples)
    return replace(data, examples=tuple(examples))


def end_tokens(model: Any) -> set[int]:
    """Tokens with which a transformers model ends its turn; empty if it names none."""
    settings = getattr(model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    found = model.config.eos_token_id if found is None else found
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def greedy_answer(model: ProfiledModel, prompt: tuple[int, ...], tokens: int, ends: Collection[int]) -> list[int]:
    """What the model answers to a prompt with all heads global: up to `tokens` tokens, or to the first one that is in
    `ends`.
    """
    x, _ = model.embed(prompt)
    cos, sin = model.tables(x, torch.arange(len(prompt) + tokens, device=model.device))
    cache = [model.run_layer(layer, x, (cos[: len(x)], sin[: len(x)]), dense) for layer in range(model.layers)]
    answer = [int(model.logits(x[-1:]).argmax())]
    while len(answer) < tokens and answer[-1] not in ends:
        at = len(prompt) + len(answer) - 1
        row = model.parts.embed(torch.tensor(answer[-1:], device=model.device))
        for layer in range(model.layers):
            row = _one_row(model, layer, row, (cos[at : at + 1], sin[at : at + 1]), cache)
        answer.append(int(model.logits(row).argmax()))
    return answer


def _one_row(
    model: ProfiledModel,
    layer: int,
    row: Tensor,
    tables: tuple[Tensor, Tensor],
    cache: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """A new row [1, d] through a layer; its K and V join those of `cache`, each [H, T, D]."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        old_k, old_v = cache[layer]
        cache[layer] = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        return dense(Rows(layer, old_k.shape[1], q, *cache[layer], scale))

    return model.apply_layer(layer, row, tables, attend)
