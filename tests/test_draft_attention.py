# SPDX-License-Identifier: Apache-2.0
"""A draft model's attention on a CPU: every step sees the text and the chain up to its own row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from redknot_sglang.draft_attention import DraftSteps

pytestmark = pytest.mark.pinned

HEADS, KV_HEADS, DIM, STEPS = 4, 2, 16, 4
LENGTHS = (5, 9)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What one row sees of all keys; q [HEADS, DIM], k and v [n, KV_HEADS, DIM]."""
    k, v = (rows.repeat_interleave(HEADS // KV_HEADS, 1) for rows in (k, v))
    weights = torch.einsum("hd,nhd->hn", q, k).mul(DIM**-0.5).softmax(-1)
    return torch.einsum("hn,nhd->hd", weights, v)


class Runner:
    """As much of SGLang's ModelRunner as its attention looks at."""

    device = "cpu"

    def __init__(self) -> None:
        table = torch.randperm(2 * 16).view(2, 16).to(torch.int32)
        self.req_to_token_pool = SimpleNamespace(req_to_token=table)
        self.k, self.v = torch.randn(2, 32, KV_HEADS, DIM)
        self.token_to_kv_pool = SimpleNamespace(
            get_key_buffer=lambda layer: self.k, get_value_buffer=lambda layer: self.v, set_kv_buffer=self.store
        )

    def store(self, layer: Any, loc: Any, k: Tensor, v: Tensor) -> None:
        self.k[loc.loc], self.v[loc.loc] = (rows.view(-1, KV_HEADS, DIM) for rows in (k, v))


def test_a_step_sees_the_rows_of_the_steps_before() -> None:
    torch.manual_seed(0)
    runner = Runner()
    steps = DraftSteps(TorchNativeAttnBackend(runner), STEPS)
    assert len(steps.attn_backends) == STEPS - 1, "the first token of a chain is known before"
    layer = SimpleNamespace(
        layer_id=0,
        qk_head_dim=DIM,
        v_head_dim=DIM,
        tp_q_head_num=HEADS,
        tp_k_head_num=KV_HEADS,
        scaling=DIM**-0.5,
        is_cross_attention=False,
        sliding_window_size=-1,
    )
    table = runner.req_to_token_pool.req_to_token
    batch = SimpleNamespace(
        forward_mode=ForwardMode.DECODE,
        req_pool_indices=torch.tensor([1, 0]),
        seq_lens=torch.tensor(LENGTHS),
        encoder_lens=None,
    )
    steps.init_forward_metadata(batch)
    for number, step in enumerate(steps.attn_backends):
        q, k, v = (torch.randn(2, heads * DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
        batch.out_cache_loc = table[batch.req_pool_indices, batch.seq_lens + number].long()
        step.init_forward_metadata(batch)
        out = step.forward(q, k, v, layer, batch)
        assert batch.seq_lens.tolist() == list(LENGTHS), "the batch is the same for all steps"
        for row, (request, length) in enumerate(zip((1, 0), LENGTHS, strict=True)):
            slots = table[request, : length + number + 1].long()
            expected = attended(q[row].view(HEADS, DIM), runner.k[slots], runner.v[slots])
            torch.testing.assert_close(out[row].view(HEADS, DIM), expected)
