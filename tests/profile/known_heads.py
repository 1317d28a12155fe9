# SPDX-License-Identifier: Apache-2.0
"""A Llama whose head classes are known because its weights are set by hand, and prompts it answers.

Two layers of three KV heads, two query heads each. RoPE's base is so large that the slow half of the dimensions hardly
turns: a head that compares there attends by content at any distance. The fast dimensions turn at every step: a head that
compares a constant there attends to one fixed distance.

    0:0  local   the previous token, written beside the token itself; the induction head depends on it
    0:1  GLOBAL  at the query token: the marker, wherever it stands, which is the answer; else the first token
    0:2  local   the token itself
    1:0  local   the previous token
    1:1  local   the token before the previous one
    1:2  GLOBAL  induction: behind an earlier occurrence of this token stands the answer; else the first token

The second query head of a global KV head looks at the previous token, so that evidence must come from the first one.
Small noise on all weights keeps anything from being exactly 0.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from redknot_sglang.profile.data import Data, Example
from redknot_sglang.profile.model import ATTENTION, ProfiledModel
from redknot_sglang.profile.study import Study
from redknot_sglang.work_file import WorkFile

GLOBAL = [(0, 1), (1, 2)]
WINDOW, SINK = 16, 1
VOCABULARY, HIDDEN, DIM, GROUP, KV_HEADS = 20, 66, 64, 2, 3
BOS, QUERY, MARKERS, KEYS, VALUES, FILLERS = 0, 1, range(2, 6), range(6, 10), range(10, 14), range(14, 20)
TOKEN, CONSTANT, PREVIOUS, OUT = 0, VOCABULARY, VOCABULARY + 1, 2 * VOCABULARY + 1
BASE = 1e10
CONTENT = [*range(16, 32), *range(48, 64)]
FIRST_TOKEN = CONTENT[-1]
# RMSNorm makes of an entry 1 about this, with two to four entries of that size.
NORM = (HIDDEN / 3) ** 0.5
MATCH, REST, PLACE = 25.0, 12.0, 30.0


def known_model() -> LlamaForCausalLM:
    """The model, float32 on the CPU."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=2, head_dim=DIM,
        num_attention_heads=GROUP * KV_HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": BASE}, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = ATTENTION
    model = LlamaForCausalLM(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()
        for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj):
            matrix.weight.copy_(2e-3 * torch.randn(matrix.weight.shape, generator=generator))
    embedding = model.model.embed_tokens.weight.zero_()
    embedding[:, TOKEN : TOKEN + VOCABULARY] = torch.eye(VOCABULARY)
    embedding[:, CONSTANT] = 1
    model.lm_head.weight.zero_()[:, OUT : OUT + VOCABULARY] = 3 * torch.eye(VOCABULARY)
    first, second = (_Heads(layer.self_attn) for layer in model.model.layers)
    for query in range(GROUP):
        first.look_back(0, query, 1, into=PREVIOUS, gain=0.5)
        first.look_back(2, query, 0, into=OUT, gain=0.05)
        second.look_back(0, query, 1, into=OUT, gain=0.05)
        second.look_back(1, query, 2, into=OUT, gain=0.05)
    first.match(1, {QUERY: 0}, dict.fromkeys(MARKERS, 0), TOKEN)
    first.look_back(1, 1, 1, into=OUT, gain=0.05)
    every = {token: token for token in range(1, VOCABULARY)}
    second.match(2, every, every, PREVIOUS)
    second.look_back(2, 1, 1, into=OUT, gain=0.05)
    return model


def known_study(examples: int = 6, length: int = 96, work: WorkFile | None = None, window: int = WINDOW) -> Study:
    """A study of the model on prompts of about `length` tokens."""
    data = Data("random", "known", tuple(known_example(seed, length) for seed in range(examples)))
    model = ProfiledModel(known_model(), chunk=40)
    windows = (window,)
    return Study(
        model, data, work or WorkFile(None, 0), SINK, windows, (4, *windows, 32), length, goal=4, gate_steps=80
    )


def known_example(seed: int, length: int) -> Example:
    """Marker and key-value pair early, filler, and a question: the query token for even seeds, else the key."""
    draw = random.Random(seed)
    marker, key, value = (draw.choice(words) for words in (MARKERS, KEYS, VALUES))
    early = [draw.choice(FILLERS) for _ in range(20)]
    early[draw.randrange(5)] = marker
    at = draw.randrange(6, 18)
    early[at : at + 2] = [key, value]
    ids = [BOS, *early, *draw.choices(FILLERS, k=length - 23)]
    ids += [key, value] if seed % 2 else [QUERY, marker]
    return Example(tuple(ids), len(ids) - 1, True)


class _Heads:
    """Sets the weights of an attention module."""

    def __init__(self, attention: torch.nn.Module) -> None:
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.q, self.k, self.v, self.o = (getattr(attention, name).weight for name in names)

    def look_back(self, head: int, query: int, distance: int, into: int, gain: float) -> None:
        """A query head attends to the row `distance` before its own and adds that token to the features at `into`."""
        q, k = self._rows(self.q, GROUP * head + query), self._rows(self.k, head)
        size = (PLACE * DIM**0.5) ** 0.5 / NORM
        for pair in range(6):
            angle = torch.tensor(distance * BASE ** (-pair / (DIM / 2)))
            q[pair, CONSTANT], q[pair + DIM // 2, CONSTANT] = size * angle.cos(), -size * angle.sin()
            k[pair, CONSTANT] = size
        self._copy(head, query, into, gain)

    def match(self, head: int, asked: dict[int, int], offered: dict[int, int], where: int) -> None:
        """The first query head attends to rows that offer what it asks for, else to the first token; adds the token to
        OUT. asked: token to content; offered: feature, counted from `where`, to content."""
        q, k = self._rows(self.q, GROUP * head), self._rows(self.k, head)
        match, rest = ((score * DIM**0.5) ** 0.5 / NORM for score in (MATCH, REST))
        for token, content in asked.items():
            q[CONTENT[content], TOKEN + token] = match
        for feature, content in offered.items():
            k[CONTENT[content], where + feature] = match
        q[FIRST_TOKEN, CONSTANT] = rest
        k[FIRST_TOKEN, TOKEN + BOS] = rest
        self._copy(head, 0, OUT, 1.0)

    def _copy(self, head: int, query: int, into: int, gain: float) -> None:
        v, o = self._rows(self.v, head), self.o[:, (GROUP * head + query) * DIM :][:, :DIM]
        for token in range(1, VOCABULARY):  # nothing of the first token, where heads rest
            v[token, TOKEN + token] = 1 / NORM
            o[into + token, token] = gain

    @staticmethod
    def _rows(weight: Tensor, head: int) -> Tensor:
        return weight[head * DIM : (head + 1) * DIM]
