# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding by n-grams: what our hooks make of drafts, of room for them, and what is refused with them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.ngram_worker import _derive_tree_links

from redknot_sglang.errors import RedKnotError
from redknot_sglang.hooks.v0_5_17 import ngram, segments
from redknot_sglang.hooks.v0_5_17.refusals import ARGUMENTS, refuse_unsupported
from redknot_sglang.plan.request import RequestState, mark_batch

# In 0.5.18 they are refused.
pytestmark = pytest.mark.pinned

HOOKS = {seam.target.rsplit(".", 1)[1]: seam.hook for seam in ngram.SEAMS}


def arguments(with_redknot: bool = True, **changes: Any) -> Any:
    """Server arguments as far as these hooks look at them."""
    given = {
        "speculative_algorithm": "NGRAM",
        "speculative_num_draft_tokens": 4,
        "speculative_num_steps": 4,
        "speculative_ngram_max_bfs_breadth": 1,
        "speculative_ngram_external_sam_budget": 0,
        "hicache_storage_backend": None,
        "enable_hierarchical_cache": False,
        "tp_size": 1,
        "disaggregation_mode": "null",
        **changes,
    }
    return SimpleNamespace(**given, **({"_redknot": object()} if with_redknot else {}))


def test_drafts_are_chains_with_redknot_only() -> None:
    # Node 0 has two children, and the second of them has one.
    tokens, mask = np.array([9, 5, 6, 7]), np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]])
    drafted = tokens, mask.reshape(-1)
    hook = HOOKS["_prepare_draft_tokens"]
    worker = SimpleNamespace(server_args=arguments(), draft_token_num=4)
    chain, above = hook(drafted, worker, None)
    assert chain.tolist() == [9, 6, 7, 0]
    # As SGLang reads it, each node has the next one for its only child.
    children, siblings = _derive_tree_links(above, 1, 4)
    assert children.tolist() == [[1, 2, 3, -1]] and siblings.tolist() == [[-1] * 4]
    worker.server_args = arguments(with_redknot=False)
    assert hook(drafted, worker, None) is None, "what SGLang drafts stays"


@pytest.mark.parametrize("given", [None, "clang++"])
def test_the_corpus_is_compiled_with_the_header_that_it_lacks(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if given is not None:
        monkeypatch.setenv("CXX", given)
    seen: list[str | None] = []

    def construct(worker: Any, server_args: Any, **kwargs: Any) -> None:
        seen.append(os.environ.get("CXX"))
        if len(seen) == 3:
            raise RuntimeError("does not compile")

    hook = HOOKS["__init__"]
    hook(construct, None, arguments(), gpu_id=0)
    hook(construct, None, arguments(with_redknot=False), gpu_id=0)
    with pytest.raises(RuntimeError):
        hook(construct, None, server_args=arguments(), gpu_id=0)
    compiler = f"{given or 'c++'} -include cstddef"
    assert seen == [compiler, given, compiler]
    assert os.environ.get("CXX") == given, "nobody else compiles so"


def test_requests_at_the_end_of_the_context_have_room_for_two_drafts() -> None:
    hook = HOOKS["get_req_to_token_extra_context_len"]
    assert hook(8, arguments()) == 8
    assert hook(16, arguments(speculative_num_draft_tokens=12)) == 24
    assert hook(4, arguments(speculative_algorithm=None)) is None
    assert hook(16, arguments(with_redknot=False)) is None


def test_a_verified_draft_is_no_extend_of_a_segmented_request() -> None:
    (seam,) = [seam for seam in segments.SEAMS if seam.target.endswith("ForwardBatch.init_new")]
    # The batch in which a segmented request was prefilled goes on as the one in which it decodes.
    batch = SimpleNamespace(reqs=[SimpleNamespace(redknot=RequestState(whole=True))])
    stretch: Any = object()
    mark_batch(batch, {0: stretch})
    batch.forward_mode = ForwardMode.TARGET_VERIFY
    backend = SimpleNamespace(runs="of the prefill", probed=True)
    seam.hook(
        "forward batch",
        None,
        batch,
        SimpleNamespace(server_args=arguments(), attn_backend=backend, is_draft_worker=False),
    )
    assert backend.runs is None and not backend.probed


@pytest.mark.parametrize("source", ["disk", "ipc"])
@pytest.mark.parametrize("draft_worker", [None, object()])
def test_an_update_of_weights_is_the_models(source: str, draft_worker: Any) -> None:
    name = f"update_weights_from_{source}"
    worker = SimpleNamespace(server_args=arguments(), draft_worker=draft_worker)
    succeeded, message = HOOKS[name](getattr(BaseSpecWorker, name), worker, None)
    assert succeeded and message
    worker.server_args = arguments(with_redknot=False)
    assert HOOKS[name](lambda worker, message: (False, message), worker, "given") == (False, "given")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"speculative_algorithm": "STANDALONE"}, "--speculative-algorithm STANDALONE .* use NGRAM, EAGLE or EAGLE3"),
        ({"speculative_algorithm": "DFLASH"}, "drafts of this kind were not tried"),
        ({"speculative_ngram_max_bfs_breadth": 10}, "drafts must be chains; add --speculative-ngram-max-bfs-breadth 1"),
        ({"speculative_ngram_external_sam_budget": 2}, "drafts must be chains; leave it out"),
        ({"disaggregation_mode": "decode"}, "how many slots a decode server promises does not count drafts"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RedKnotError, match=why):
        refuse_unsupported(arguments(**changes), None, ARGUMENTS)
