# SPDX-License-Identifier: Apache-2.0
"""What a server does with the dealing: how many tokens it brings, when heads stay, what it says; 2, 4 and 8 ranks by
their shards.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.heads import HeadMap
from redknot_sglang.heads.dealing import checkpoint_order
from redknot_sglang.pool.dealing import Dealing, attach, dealing_for, dealing_of, is_attached
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.pool.sizing import split_budget

GIB = 1 << 30


def one_of_eight(place: Any, layers: int = 36) -> HeadMap:
    """The shape of Qwen3-8B with one global head in each layer. place: its number by layer."""
    return HeadMap.from_global_heads(layers, 8, tuple((layer, place(layer)) for layer in range(layers)), 256, 4)


def held(dealing: Dealing) -> int:
    """Global slots of a server with 40 GiB for KV on each rank."""
    cost = Ranks(dealing.dealt, dealing.group, dealing.ranks).widest(128, 2)
    return split_budget(dealing.heads, cost, 40 * GIB, 32768, 8192).global_slots


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_hold_as_many_times_the_tokens_as_they_are(ranks: int) -> None:
    """All global heads on one rank, or anywhere."""
    rng = random.Random(7)
    for place in (lambda layer: 0, lambda layer: rng.randrange(8)):
        heads = one_of_eight(place)
        one, dealt = held(Dealing.of(heads, 4, 1)), held(Dealing.of(heads, 4, ranks))
        left = held(Dealing(heads, 4, ranks, checkpoint_order(heads)))
        # 36 global heads over 8 ranks are 4 or 5 on each, where 4.5 would be even.
        assert dealt >= (1.95 if ranks < 8 else 1.75) * one * ranks / 2
        assert dealt > 1.1 * left


def test_of_more_ranks_than_kv_heads_several_have_the_same_head() -> None:
    heads = one_of_eight(lambda layer: 0)
    dealing = Dealing.of(heads, 4, 16)
    assert dealing.moves and dealing.most == dealing.fewest == 5
    assert [dealing.globals_of(rank) for rank in range(0, 16, 2)] == [
        dealing.globals_of(rank) for rank in range(1, 16, 2)
    ]
    assert dealing.kv_heads(2) == dealing.kv_heads(3) == [[layer[1]] for layer in dealing.order]
    assert held(dealing) == held(Dealing.of(heads, 4, 8))


def server(**changes: Any) -> tuple[Any, Any]:
    """SGLang's server arguments and model configuration, as far as the dealing looks at them."""
    args = {
        "tp_size": 2,
        "model_impl": "auto",
        "enable_lora": False,
        "lora_paths": None,
        "load_format": "auto",
        "weight_cache_mode": "off",
        "remote_instance_weight_loader_start_seed_via_transfer_engine": False,
    }
    model = {"num_attention_heads": 32, "quantization": None, "architecture": "Qwen3ForCausalLM"}
    args |= {name: value for name, value in changes.items() if name not in model}
    model |= {name: value for name, value in changes.items() if name in model}
    architecture = model.pop("architecture")
    return SimpleNamespace(**args), SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture]), **model)


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "another class": ({"architecture": "Phi3ForCausalLM"}, "nobody has looked how Phi3ForCausalLM keeps"),
    "another implementation": ({"model_impl": "transformers"}, "--model-impl transformers keeps"),
    "quantised": ({"quantization": "awq"}, "quantised weights are packed"),
    "quantised while loading": ({"torchao_config": "int8wo"}, "quantised weights are packed"),
    "adapters": ({"enable_lora": True}, "LoRA adapters are cut"),
    "adapters of a list": ({"lora_paths": ["a"]}, "LoRA adapters are cut"),
    "parts of weights": (
        {"load_format": "sharded_state"},
        "under --load-format sharded_state weights do not come whole",
    ),
    "weights of a daemon": ({"weight_cache_mode": "ipc"}, "other servers take the weights"),
    "weights for others": (
        {"remote_instance_weight_loader_start_seed_via_transfer_engine": True},
        "other servers take the weights",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_heads_stay_where_weights_cannot_be_moved_and_the_server_says_what_it_costs(case: str) -> None:
    changes, reason = REASONS[case]
    heads = one_of_eight(lambda layer: 0)
    dealing = dealing_for(*server(**changes), heads)
    assert not dealing.moves and dealing.dealt is heads and dealing.why_not is not None and reason in dealing.why_not
    sentence = dealing.sentence()
    assert (
        sentence.startswith("2 ranks hold 36, 0 global heads, heads stay in the checkpoint's order: ")
        and reason in sentence
    )
    assert sentence.endswith("no rank would hold more than 18, and the pools up to 2.00 times as many tokens")
    assert dealing.status()["why_not"] == dealing.why_not and dealing.status()["global_heads"] == [36, 0]
    # With one rank, or a map that is even, nothing is lost and nothing is said.
    assert dealing_for(*server(**{**changes, "tp_size": 1}), heads).why_not is None
    even = dealing_for(*server(**changes), one_of_eight(lambda layer: 7 * (layer % 2)))
    assert even.why_not is None and even.sentence() == "2 ranks hold 18, 18 global heads"


@pytest.mark.parametrize("load_format", ["auto", "dummy", "safetensors"])
def test_otherwise_they_are_dealt_out_and_all_parts_find_it(load_format: str) -> None:
    heads = one_of_eight(lambda layer: 0)
    server_args, model_config = server(load_format=load_format)
    assert not is_attached(model_config)
    attach(model_config, dealing_for(server_args, model_config, heads))
    dealing = dealing_of(model_config)
    assert is_attached(model_config) and dealing.moves and dealing.group == 4 and dealing.heads is heads
    assert dealing.sentence() == "2 ranks hold 18, 18 global heads; in the checkpoint's order one would hold 36"
    status = dealing.status()
    assert status["global_heads"] == [18, 18] and status["dealt"] and status["count"] == 2
    assert [sorted(a + b) for a, b in zip(*status["kv_heads"], strict=True)] == [list(range(8))] * 36


def test_ranks_that_heads_cannot_be_spread_over_are_left_to_the_sizes_to_refuse() -> None:
    assert not Dealing.of(one_of_eight(lambda layer: 0), 4, 3).moves


def test_servers_that_keep_heads_elsewhere_are_told_apart() -> None:
    heads = one_of_eight(lambda layer: 0)
    found = [Dealing.of(heads, 4, ranks, why_not) for ranks in (1, 2, 4) for why_not in (None, "why")]
    found.append(Dealing.of(one_of_eight(lambda layer: 1), 4, 2))
    digests = [dealing.digest for dealing in found]
    # With one rank nothing is dealt.
    assert digests[0] == digests[1] and len(set(digests)) == len(digests) - 1
