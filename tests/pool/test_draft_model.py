# SPDX-License-Identifier: Apache-2.0
"""Bytes of a draft model's KV, as SGLang's own pool of it has them; and its rows, which go with those of a document."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.configs.model_config import AttentionArch, ModelConfig

from redknot_sglang.errors import RedKnotError
from redknot_sglang.kernels.relocate import Rotation, turned
from redknot_sglang.pool.draft_model import draft_slot_bytes
from redknot_sglang.pool.relocation import ClassMove, Follower, Relocation, RelocationQueue
from redknot_sglang.pool.sizing import class_bytes, split_budget
from tests.serving.drafts import HEAD_DIM, KV_HEADS, random_draft
from tests.serving.harness import MODEL
from tests.serving.maps import make_map


@pytest.mark.pinned
@pytest.mark.parametrize(
    ("dtype", "ranks", "expected"),
    [("auto", 1, 2 * KV_HEADS * HEAD_DIM * 4), ("auto", 2, 2 * HEAD_DIM * 4), ("fp8_e4m3", 4, 2 * HEAD_DIM)],
)
def test_bytes_of_a_slot(dtype: str, ranks: int, expected: int, tmp_path: Path) -> None:
    from sglang.srt.server_args import ServerArgs

    draft = str(random_draft(tmp_path / "draft", "EAGLE"))
    server_args: Any = ServerArgs(model_path=str(MODEL), device="cpu", dtype="float32")
    asked = SimpleNamespace(**{**vars(server_args), "kv_cache_dtype": dtype, "speculative_draft_model_path": draft})
    asked.speculative_algorithm, asked.speculative_draft_model_revision = "EAGLE", None
    assert draft_slot_bytes(asked, ranks) == expected


def test_without_a_draft_model() -> None:
    for algorithm in (None, "NGRAM"):
        assert draft_slot_bytes(SimpleNamespace(speculative_algorithm=algorithm), 1) == 0
    nameless = SimpleNamespace(speculative_algorithm="EAGLE", speculative_draft_model_path=None)
    with pytest.raises(RedKnotError, match="add --speculative-draft-model-path"):
        draft_slot_bytes(nameless, 1)


@pytest.mark.parametrize("changes", [{"attention_arch": AttentionArch.MLA}, {"v_head_dim": 64}])
def test_kv_of_other_forms_is_refused(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"attention_arch": AttentionArch.MHA, "head_dim": 128, "v_head_dim": 128, **changes}
    monkeypatch.setattr(ModelConfig, "from_server_args", lambda *args, **kwargs: SimpleNamespace(**sizes))
    asked = SimpleNamespace(
        speculative_algorithm="EAGLE", speculative_draft_model_path="draft", speculative_draft_model_revision=None
    )
    with pytest.raises(RedKnotError, match="--speculative-draft-model-path draft: its attention must be"):
        draft_slot_bytes(asked, 1)


@pytest.mark.parametrize("all_global", [False, True])
def test_a_budget_pays_for_the_draft_models_kv(all_global: bool) -> None:
    heads = make_map(64, 4)
    if all_global:
        heads = type(heads).from_global_heads(2, 2, ((0, 0), (0, 1), (1, 0), (1, 1)), 64, 4)
    cost, budget = class_bytes(heads, 64, 2), 50_000_000
    drafting = replace(cost, draft=1000)
    slots = split_budget(heads, drafting, budget, 4096, 512)
    local = 0 if all_global else slots.local_slots * cost.local
    taken = slots.global_slots * (cost.global_slot + 1000) + local
    assert 0.98 * budget < taken <= budget
    assert slots.global_slots < split_budget(heads, cost, budget, 4096, 512).global_slots


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float8_e4m3fn, 0.3)])
def test_rows_of_the_draft_model_follow(dtype: torch.dtype, tolerance: float) -> None:
    """Global slots 1 and 3 go to 5 and 2; local heads move nothing here."""
    torch.manual_seed(0)

    def rotation(base: float) -> Rotation:
        angles = torch.outer(torch.arange(32.0), base ** -torch.arange(4.0))
        return Rotation(torch.cat([angles.cos(), angles.sin()], -1), True)

    def buffers(heads: int) -> Any:
        return SimpleNamespace(k=[torch.randn(8, heads, 8)], v=[torch.randn(8, heads, 8)])

    pool = SimpleNamespace(full_kv_pool=buffers(2), swa_kv_pool=buffers(1))
    before = torch.randn(2, 8, 3, 8).to(dtype)
    # SGLang keeps 8-bit floats as bytes.
    as_kept = torch.uint8 if dtype.itemsize == 1 else dtype
    k, v = (rows.clone().view(as_kept) for rows in before)
    draft, own = SimpleNamespace(k_buffer=[k], v_buffer=[v], dtype=dtype), rotation(3.0)
    source, target, origin, position = (torch.tensor(pair) for pair in ([1, 3], [5, 2], [4, 5], [20, 21]))
    none = torch.empty(0, dtype=torch.int64)
    queue = RelocationQueue()
    queue.follower = Follower(draft, own)
    queue.add(Relocation(ClassMove(source, target, origin, position), ClassMove(none, none, none, none)))
    queue.run(pool, rotation(2.0))
    (keys, values), (old_keys, old_values) = ([rows.view(dtype).float() for rows in both] for both in ((k, v), before))
    assert torch.equal(values[target], old_values[source])
    # A key at position p is its first form turned by p angles: turned back to 0 both are the same.
    back = torch.zeros(2, dtype=torch.int64)
    moved, first = (
        turned(rows, *own.turn(at, back), own.is_neox)
        for rows, at in ((keys[target], position), (old_keys[source], origin))
    )
    torch.testing.assert_close(moved, first, atol=tolerance, rtol=0)
    others = [0, 1, 3, 4, 6, 7]
    assert torch.equal(keys[others], old_keys[others])
