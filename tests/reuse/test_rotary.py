# SPDX-License-Identifier: Apache-2.0
"""Keys moved by relocation against keys that SGLang's own rotary modules computed in place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from redknot_sglang.errors import RotaryError
from redknot_sglang.kernels.kv_layers import KVLayers
from redknot_sglang.kernels.relocate import relocate
from redknot_sglang.reuse.rotary import rotary_of, rotation_of

HEAD_DIM, LIMIT = 32, 512


@pytest.fixture(scope="module", autouse=True)
def _sglang() -> None:
    """Rotary modules read the global server arguments when they are built."""
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

    set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", device="cpu"))


def _rope(scaling: dict[str, Any] | None = None, is_neox: bool = True, partial: float = 1.0) -> nn.Module:
    from sglang.srt.layers.rotary_embedding import get_rope

    module: nn.Module = get_rope(
        HEAD_DIM, HEAD_DIM, LIMIT, 10000, is_neox, scaling, torch.float32, partial_rotary_factor=partial
    )
    return module


SCALINGS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic NTK": {"rope_type": "dynamic", "factor": 2.0},
    "NTK alpha": {"rope_type": "dynamic", "factor": 1.0, "alpha": 8.0},
    "Llama 3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "YaRN": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LIMIT},
}


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("name", SCALINGS)
def test_moved_keys_equal_keys_computed_in_place(name: str, is_neox: bool) -> None:
    _check(_rope(SCALINGS[name], is_neox))


@pytest.mark.parametrize("is_neox", [True, False])
def test_partial_rotation_leaves_the_other_dimensions(is_neox: bool) -> None:
    _check(_rope(None, is_neox, partial=0.5))


def _check(rope: nn.Module) -> None:
    heads, rows = 2, 40
    keys = torch.randn(rows, heads * HEAD_DIM)
    origin = torch.arange(rows)
    position = torch.cat([torch.arange(rows // 2) + LIMIT - rows, torch.randperm(LIMIT)[: rows - rows // 2]])

    def at(positions: torch.Tensor) -> torch.Tensor:
        forward: Any = rope.forward_native
        moved: torch.Tensor = forward(positions, keys.clone(), keys.clone())[1]
        return moved.view(rows, heads, HEAD_DIM)

    pool = torch.cat([at(origin), torch.zeros(rows, heads, HEAD_DIM)])
    layers = KVLayers([pool], [pool.clone()])
    rotation = rotary_of(nn.ModuleList([rope]))
    slots = torch.arange(rows)
    relocate(layers, slots, slots + rows, *rotation.turn(origin, position), rotation.is_neox)
    torch.testing.assert_close(layers.k[0][rows:], at(position), rtol=2e-5, atol=2e-5)


def test_layers_that_rotate_differently_are_refused() -> None:
    with pytest.raises(RotaryError, match="in different ways"):
        rotary_of(nn.ModuleList([_rope(), _rope(SCALINGS["linear"])]))


def test_a_model_without_rotary_embedding_is_refused() -> None:
    with pytest.raises(RotaryError, match="no rotary embedding"):
        rotary_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * (HEAD_DIM // 2),
                "long_factor": [4.0] * (HEAD_DIM // 2),
                "original_max_position_embeddings": 256,
            },
            "longrope switches",
        ),
        ({"rope_type": "default", "mrope_section": [4, 6, 6]}, "mrope positions"),
        ({"rope_type": "linear", "factor": [1.0, 4.0]}, "several factors"),
    ],
)
def test_what_is_no_rotation_by_one_table_is_refused(scaling: dict[str, Any], reason: str) -> None:
    with pytest.raises(RotaryError, match=reason):
        rotary_of(nn.ModuleList([_rope(scaling)]))


def test_an_unknown_subclass_is_refused() -> None:
    rope = copy.deepcopy(_rope())  # SGLang caches the module

    class CleverRotaryEmbedding(type(rope)):  # type: ignore[misc]
        pass

    rope.__class__ = CleverRotaryEmbedding
    with pytest.raises(RotaryError, match="CleverRotaryEmbedding"):
        rotary_of(nn.ModuleList([rope]))


class Exaone4ForCausalLM(nn.Module):
    """A model that SGLang rotates in some layers only; nothing of that shows in its rotary module."""

    def __init__(self) -> None:
        super().__init__()
        self.rotary_emb = _rope()


class Qwen3ForCausalLM(Exaone4ForCausalLM):
    """A model that was checked."""


def test_models_that_were_not_checked_are_refused() -> None:
    with pytest.raises(RotaryError, match="not checked for Exaone4ForCausalLM"):
        rotation_of(Exaone4ForCausalLM())
    assert rotation_of(Qwen3ForCausalLM()).is_neox
