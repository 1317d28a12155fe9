# SPDX-License-Identifier: Apache-2.0
"""Whether a server deals its KV heads out over its tensor-parallel ranks (`heads/dealing.py`), and if not, why.

Dealing moves heads while the model's weights are loaded (`dealt_weights.py`). Where the weights do not come that way,
heads stay in the checkpoint's order: the answers are the same, but the rank with most global heads limits all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redknot_sglang.heads import HeadMap
from redknot_sglang.heads.dealing import Order, checkpoint_order, deal, fewest_global, most_global, reordered

# Model classes whose attention weights were looked at: rows of q, k and v and columns of o stand head by head, and
# norms of queries and keys, if there are any, are the same for all heads.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
# Values of --load-format under which each whole weight goes through the model's `load_weights`, and the one that
# loads none.
STREAMING = ("auto", "pt", "safetensors", "npcache", "fastsafetensors", "runai_streamer")
DUMMY = "dummy"
_ATTRIBUTE = "redknot_dealing"
_QUANTISING = ("torchao_config", "modelopt_quant", "rl_quant_profile")


@dataclass(frozen=True)
class Dealing:
    """How the KV heads of a model lie on tensor-parallel ranks.

    heads: the whole model's map, in the checkpoint's order. It stands for the map everywhere but on the ranks: in
        status, certificates and reports.
    group: query heads for each KV head.
    ranks: tensor-parallel ranks.
    order: of each layer, its KV heads in the order in which the ranks take them.
    why_not: why they are left in the checkpoint's order where another would be better; None if they are not.
    """

    heads: HeadMap
    group: int
    ranks: int
    order: Order
    why_not: str | None = None

    @classmethod
    def of(cls, heads: HeadMap, group: int, ranks: int, why_not: str | None = None) -> Dealing:
        """The best order for a number of ranks, or the checkpoint's if there is a reason against any other.

        Where heads cannot be spread over the ranks it is the checkpoint's, too: sizes and pools refuse these ranks.
        """
        if heads.num_kv_heads % ranks and ranks % heads.num_kv_heads:
            return cls(heads, group, ranks, checkpoint_order(heads))
        order = checkpoint_order(heads) if why_not else deal(heads, ranks, group)
        found = cls(heads, group, ranks, order, why_not)
        # Nobody has to know why a better order is not taken where there is none.
        return found if why_not and found.fewest < found.most else cls(heads, group, ranks, order)

    @property
    def moves(self) -> bool:
        """Whether any head is elsewhere than in the checkpoint."""
        return self.order != checkpoint_order(self.heads)

    @cached_property
    def dealt(self) -> HeadMap:
        """The whole model's map in the order in which the ranks take the heads: that of pools, attention and sizes."""
        return reordered(self.heads, self.order, self.group)

    @property
    def digest(self) -> str:
        """16 hex digits that tell where the heads of this map lie on the ranks from where they lie on another
        server's.
        """
        return hashlib.sha256(json.dumps([self.heads.fingerprint, self.ranks, self.order]).encode()).hexdigest()[:16]

    @property
    def most(self) -> int:
        """Global heads, over all layers, of the rank that has most."""
        return most_global(self.dealt, self.ranks)

    @property
    def fewest(self) -> int:
        """The same under the best order there is."""
        return fewest_global(self.heads, self.ranks)

    def kv_heads(self, rank: int) -> list[list[int]]:
        """Of each layer, the KV heads of a rank by the numbers that they have in the checkpoint."""
        count = self.heads.num_kv_heads
        width, first = max(1, count // self.ranks), rank * count // self.ranks
        return [list(layer[first : first + width]) for layer in self.order]

    def globals_of(self, rank: int) -> int:
        """Global heads of a rank, over all layers."""
        return sum(map(sum, self.dealt.shard(rank, self.ranks).is_global))

    def status(self) -> dict[str, Any]:
        """The same as JSON types: `count` of ranks, whether heads were `dealt` out and `why_not`, and by rank its
        `global_heads` over all layers and the `kv_heads` of each layer, by the checkpoint's numbers.
        """
        return {
            "count": self.ranks,
            "dealt": self.moves,
            "why_not": self.why_not,
            "global_heads": [self.globals_of(rank) for rank in range(self.ranks)],
            "kv_heads": [self.kv_heads(rank) for rank in range(self.ranks)],
        }

    def sentence(self) -> str:
        """What to log about it when a server of several ranks starts: what the ranks hold, and what it costs if no
        head was moved.
        """
        counts = ", ".join(str(self.globals_of(rank)) for rank in range(self.ranks))
        held = f"{self.ranks} ranks hold {counts} global heads"
        if self.moves:
            return f"{held}; in the checkpoint's order one would hold {most_global(self.heads, self.ranks)}"
        if self.why_not is None:
            return held
        return (
            f"{held}, heads stay in the checkpoint's order: {self.why_not}. Dealt out, no rank would hold more "
            f"than {self.fewest}, and the "
            f"pools up to {self.most / self.fewest:.2f} times as many tokens"
        )


def dealing_for(server_args: Any, model_config: Any, heads: HeadMap) -> Dealing:
    """The dealing of a server.

    server_args, model_config: SGLang's.
    heads: the whole model's map, checked against the model.
    """
    group = model_config.num_attention_heads // heads.num_kv_heads
    return Dealing.of(heads, group, server_args.tp_size, _why_not(server_args, model_config))


def attach(model_config: Any, dealing: Dealing) -> None:
    """Keep a server's dealing where all parts of it find the head map. model_config: SGLang's."""
    setattr(model_config, _ATTRIBUTE, dealing)


def is_attached(model_config: Any) -> bool:
    """Whether SGLang's model configuration has one: that of a draft model has not."""
    return hasattr(model_config, _ATTRIBUTE)


def dealing_of(model_config: Any) -> Dealing:
    """What was attached to SGLang's model configuration."""
    dealing: Dealing = getattr(model_config, _ATTRIBUTE)
    return dealing


def _why_not(server_args: Any, model_config: Any) -> str | None:
    architecture = model_config.hf_config.architectures[0]
    quantising = [model_config.quantization, *(getattr(server_args, name, None) for name in _QUANTISING)]
    reasons = (
        (architecture not in ARCHITECTURES, f"nobody has looked how {architecture} keeps its heads' weights"),
        (
            server_args.model_impl not in ("auto", "sglang"),
            f"--model-impl {server_args.model_impl} keeps weights in its own way",
        ),
        (any(quantising), "quantised weights are packed"),
        (
            bool(server_args.enable_lora or server_args.lora_paths),
            "LoRA adapters are cut for the ranks by the checkpoint's order",
        ),
        (
            server_args.load_format not in (*STREAMING, DUMMY),
            f"under --load-format {server_args.load_format} weights do not come whole and one by one",
        ),
        (
            server_args.weight_cache_mode != "off"
            or bool(server_args.remote_instance_weight_loader_start_seed_via_transfer_engine),
            "other servers take the weights out of this one's memory",
        ),
    )
    return next((reason for holds, reason in reasons if holds), None)
