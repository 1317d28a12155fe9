# SPDX-License-Identifier: Apache-2.0
"""A model whose heads were dealt out computes what it computed before; ranks are simulated by their shards of the
weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.dealing import Dealing
from redknot_sglang.pool.dealt_weights import DealtWeights, follow_dealing, is_dealt
from redknot_sglang.pool.ranks import Ranks

KV_HEADS, GROUP, DIM, WIDTH, TOKENS = 4, 2, 8, 24, 17
QUERIES, KEYS = KV_HEADS * GROUP * DIM, KV_HEADS * DIM
# All global heads on the first of two ranks, one of them in each layer but the last.
HEADS = HeadMap.from_global_heads(4, KV_HEADS, ((0, 0), (1, 0), (1, 1), (2, 0)), 3, 1)
SIZES = {"q": QUERIES, "k": KEYS, "v": KEYS}


def checkpoint(fused: bool = False) -> dict[str, Tensor]:
    """Weights and biases of attention in four layers, norms of queries and keys, and something else."""
    torch.manual_seed(3)
    found = {"model.embed_tokens.weight": torch.randn(5, WIDTH)}
    for layer in range(HEADS.num_layers):
        name = f"model.layers.{layer}.self_attn"
        for kind, shape in (("weight", (WIDTH,)), ("bias", ())):
            parts = [torch.randn(size, *shape) for size in SIZES.values()]
            if fused:
                found[f"{name}.qkv_proj.{kind}"] = torch.cat(parts)
            else:
                found |= {f"{name}.{part}_proj.{kind}": x for part, x in zip(SIZES, parts, strict=True)}
        found[f"{name}.o_proj.weight"] = torch.randn(WIDTH, QUERIES)
        found[f"{name}.q_norm.weight"] = torch.randn(DIM)
        found[f"model.layers.{layer}.mlp.gate_proj.weight"] = torch.randn(6, WIDTH)
    return found


def attention(weights: dict[str, Tensor], layer: int, is_global: Iterable[bool], x: Tensor) -> Tensor:
    """One layer's attention over the heads that these weights hold, float32 [tokens, width]."""
    name, classes = f"model.layers.{layer}.self_attn", list(is_global)
    if f"{name}.qkv_proj.weight" in weights:
        share = len(classes) * DIM
        joined = x @ weights[f"{name}.qkv_proj.weight"].T + weights[f"{name}.qkv_proj.bias"]
        q, k, v = joined.split([joined.shape[1] - 2 * share, share, share], 1)
    else:
        q, k, v = (x @ weights[f"{name}.{part}_proj.weight"].T + weights[f"{name}.{part}_proj.bias"] for part in SIZES)
    k, v = k.unflatten(1, (-1, DIM)), v.unflatten(1, (-1, DIM))
    q = q.unflatten(1, (len(classes), -1, DIM))
    at = torch.arange(len(x))
    back = at[:, None] - at
    out = torch.zeros_like(q)
    for head, kind in enumerate(classes):
        seen = (back >= 0) & ((back < HEADS.window) | (at < HEADS.sink) | kind)
        for member in range(q.shape[2]):
            logits = (q[:, head, member] @ k[:, head].T).masked_fill(~seen, -torch.inf)
            out[:, head, member] = logits.softmax(1) @ v[:, head]
    return out.flatten(1) @ weights[f"{name}.o_proj.weight"].T


def shard(weights: dict[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """What SGLang gives a rank: consecutive query heads, and the KV heads that these need."""
    kept = max(1, KV_HEADS // ranks)
    places = {
        "q": slice(rank * QUERIES // ranks, (rank + 1) * QUERIES // ranks),
        "k": slice(rank * KV_HEADS // ranks * DIM, (rank * KV_HEADS // ranks + kept) * DIM),
    }
    places["v"] = places["k"]
    found = {}
    for name, tensor in weights.items():
        part = name.split(".")[-2].removesuffix("_proj")
        if part == "qkv":
            parts = zip(tensor.split(list(SIZES.values())), SIZES, strict=True)
            found[name] = torch.cat([rows[places[letter]] for rows, letter in parts])
        else:
            found[name] = tensor[:, places["q"]] if part == "o" else tensor[places.get(part, slice(None))]
    return found


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_shards_of_the_moved_weights_sum_up_to_the_model(ranks: int, fused: bool) -> None:
    """Eight ranks over four KV heads: two of them have the same one, each with one of its query heads."""
    dealing, weights = Dealing.of(HEADS, GROUP, ranks), checkpoint(fused)
    assert dealing.moves
    seen = set[tuple[int, str]]()
    dealt = DealtWeights(dealing, DIM)
    moved = dict(dealt.moved(weights.items(), seen))
    dealt.check(seen)
    assert list(moved) == list(weights)
    for name in weights:
        if "self_attn" not in name or "norm" in name:
            assert moved[name] is weights[name]
    x = torch.randn(TOKENS, WIDTH)
    for layer in range(HEADS.num_layers):
        parts = []
        for rank in range(ranks):
            share = Ranks(dealing.dealt, GROUP, ranks).share(rank)
            parts.append(attention(shard(moved, rank, ranks), layer, share.is_global[layer], x))
        expected = attention(weights, layer, HEADS.is_global[layer], x)
        torch.testing.assert_close(torch.stack(parts).sum(0), expected, rtol=1e-4, atol=1e-4)
    # Weights that stay in their places, under the classes of the heads that should be there, give something else.
    unmoved = [
        attention(shard(weights, rank, ranks), 2, Ranks(dealing.dealt, GROUP, ranks).share(rank).is_global[2], x)
        for rank in range(ranks)
    ]
    assert not torch.allclose(torch.stack(unmoved).sum(0), attention(weights, 2, HEADS.is_global[2], x), atol=1e-2)


ODD = {
    "packed": ("self_attn.q_proj.qweight", (QUERIES, WIDTH)),
    "scales of rows": ("self_attn.q_proj.weight_scale", (QUERIES, 1)),
    "another number of heads": ("self_attn.k_proj.weight", (QUERIES, WIDTH)),
    "a transposed output": ("self_attn.o_proj.weight", (QUERIES, WIDTH)),
    "a norm of each head": ("self_attn.q_norm.weight", (QUERIES,)),
    "sinks": ("self_attn.sinks", (KV_HEADS * GROUP,)),
}


@pytest.mark.parametrize("case", ODD)
def test_weights_of_which_it_is_not_known_how_heads_lie_in_them_are_refused(case: str) -> None:
    name, shape = ODD[case]
    dealt = DealtWeights(Dealing.of(HEADS, GROUP, 2), DIM)
    with pytest.raises(RedKnotError, match=rf"layers\.1\.{name}.* --tp-size 1"):
        list(dealt.moved([(f"model.layers.1.{name}", torch.zeros(shape))], set()))
    # Layers behind the model's own, such as those that predict more tokens, are not served.
    assert list(dealt.moved([(f"model.layers.4.{name}", torch.zeros(shape))], set()))


def test_what_is_the_same_for_all_heads_passes() -> None:
    dealt = DealtWeights(Dealing.of(HEADS, GROUP, 2), DIM)
    for name, size in (("o_proj.bias", WIDTH), ("rotary_emb.inv_freq", 4), ("attn.k_scale", 1), ("k_norm.weight", DIM)):
        weight = torch.zeros(size)
        [(_, found)] = dealt.moved([(f"layers.0.self_attn.{name}", weight)], set())
        assert found is weight


class LlamaForCausalLM:
    """As SGLang's: it takes a stream of weights."""

    def __init__(self) -> None:
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> str:
        self.loaded |= dict(weights)
        return "loaded"


def followed(complete: bool = True) -> Any:
    model = LlamaForCausalLM()
    follow_dealing(model, Dealing.of(HEADS, GROUP, 2), DIM, complete)
    return model


def test_all_that_a_model_loads_is_moved_at_updates_too() -> None:
    model, weights, dealing = followed(), checkpoint(), Dealing.of(HEADS, GROUP, 2)
    assert is_dealt(model) and not is_dealt(LlamaForCausalLM())
    assert model.load_weights(weights.items()) == "loaded"
    moved = dict(DealtWeights(dealing, DIM).moved(weights.items(), set()))
    assert all(torch.equal(model.loaded[name], moved[name]) for name in weights)
    # An update may bring some weights only, even of a moved layer.
    name = "model.layers.1.self_attn.k_proj.weight"
    model.load_weights([(name, 2 * weights[name])])
    assert torch.equal(model.loaded[name], 2 * moved[name]) and not torch.equal(moved[name], weights[name])


def test_a_first_load_that_moves_nothing_is_refused() -> None:
    """Names as of another format: the model would have them in the checkpoint's order."""
    other = {name.replace("self_attn.q_proj", "attention.wq"): weight for name, weight in checkpoint().items()}
    with pytest.raises(RedKnotError, match="q_proj of layer 1 were not found by their names.* --tp-size 1"):
        followed().load_weights(other.items())
    followed(complete=False).load_weights(other.items())


def test_a_class_that_is_not_known_is_refused() -> None:
    class OtherForCausalLM(LlamaForCausalLM):
        pass

    with pytest.raises(RedKnotError, match="OtherForCausalLM, a model class that is not SGLang's own.* --tp-size 1"):
        follow_dealing(OtherForCausalLM(), Dealing.of(HEADS, GROUP, 2), DIM, True)
