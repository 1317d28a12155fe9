# SPDX-License-Identifier: Apache-2.0
"""An isolated prefill goes on only while a request waits for it."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.plan.identity import identity_of
from redknot_sglang.plan.plan import Path
from redknot_sglang.plan.request import RequestState
from redknot_sglang.reuse.isolated import IsolatedPrefills
from tests.versions import before_adapted

PATHS = [Path((10 * i, 10 * i + 10), 0, array("q", range(10 * i, 10 * i + 10)), False) for i in range(3)]


class Prefills(IsolatedPrefills):
    """Without SGLang's requests."""

    def _make(self, req: Any, key: array[int]) -> Any:
        return SimpleNamespace(req_pool_idx=None, lora_id=req.lora_id, redknot=RequestState())


def client(paths: list[Path], lora_id: str | None = None) -> Any:
    req = SimpleNamespace(extra_key=None, lora_id=lora_id, redknot=RequestState())
    req.redknot.awaited = [identity_of(req, path) for path in paths]
    return req


@pytest.fixture
def prefills() -> Prefills:
    made = Prefills()
    made.scheduler = SimpleNamespace(waiting_queue=[], chunked_req=None, _pending_chunked_abort_req=None)
    return made


def ask(prefills: IsolatedPrefills, req: Any, paths: list[Path]) -> list[Any]:
    """The request's isolated prefills, now behind it in the queue."""
    prefills.waiting.append(req)
    before = list(prefills.waiting)
    prefills.request(req, paths)
    return [waiting for waiting in prefills.waiting if all(waiting is not one for one in before)]


def test_what_a_waiting_request_wants_stays(prefills: Prefills) -> None:
    req = client(PATHS)
    own = ask(prefills, req, PATHS)
    prefills.end_unwanted()
    assert prefills.waiting == [req, *own] and len(own) == 3


def test_what_only_a_gone_request_wanted_leaves_the_queue(prefills: Prefills) -> None:
    gone, stays = client(PATHS[:2]), client(PATHS[1:])
    first, second = ask(prefills, gone, PATHS[:2])
    (third,) = ask(prefills, stays, PATHS[1:])
    prefills.waiting.remove(gone)
    prefills.end_unwanted()
    assert first not in prefills.waiting and second in prefills.waiting and third in prefills.waiting
    assert not prefills.are_under_way([identity_of(gone, PATHS[0])])
    # Somebody else may ask for it again.
    assert len(ask(prefills, client(PATHS[:1]), PATHS[:1])) == 1


def test_one_between_two_chunks_is_aborted_as_a_client_s_is(prefills: Prefills) -> None:
    gone = client(PATHS[:1])
    (chunked,) = ask(prefills, gone, PATHS[:1])
    chunked.req_pool_idx = 4
    prefills.scheduler.chunked_req = chunked
    prefills.waiting.clear()
    prefills.end_unwanted()
    assert prefills.scheduler._pending_chunked_abort_req is chunked
    # It is under way until SGLang has freed what it has.
    assert prefills.has_begun(identity_of(gone, PATHS[0]))
    prefills.done(chunked)
    assert not prefills.are_under_way([identity_of(gone, PATHS[0])])


def test_one_in_its_last_chunk_ends_by_itself(prefills: Prefills) -> None:
    gone = client(PATHS[:1])
    (running,) = ask(prefills, gone, PATHS[:1])
    running.req_pool_idx = 4
    prefills.waiting.clear()
    prefills.end_unwanted()
    assert prefills.scheduler._pending_chunked_abort_req is None and prefills.has_begun(identity_of(gone, PATHS[0]))


def test_adapters_in_use(prefills: Prefills) -> None:
    ask(prefills, client(PATHS[:1], "mine"), PATHS[:1])
    assert prefills.uses_adapter("mine") and not prefills.uses_adapter("another")


def made_by_a_scheduler(bootstrap: Any) -> Any:
    """An isolated prefill that is a request of SGLang's. bootstrap: the scheduler's queue for prefill servers, or None."""
    made = IsolatedPrefills()
    made.scheduler = SimpleNamespace(
        waiting_queue=[],
        model_config=SimpleNamespace(hf_eos_token_id={0}, vocab_size=100),
        tokenizer=None,
        init_req_max_new_tokens=lambda req: None,
        disagg_prefill_bootstrap_queue=bootstrap,
    )
    req = client(PATHS[:1])
    req.priority = None
    (prefill,) = ask(made, req, PATHS[:1])
    return prefill


@before_adapted
def test_on_a_prefill_server_it_has_a_sender_that_is_ready_and_no_buffer_and_its_kv_stays() -> None:
    """A request that waits for its segments holds one of SGLang's buffers. Were one needed for each segment too, all could wait for ever."""
    from sglang.srt.disaggregation.base.conn import KVPoll

    prefill = made_by_a_scheduler(SimpleNamespace(kv_manager=object()))
    assert prefill.disagg_kv_sender.poll() == KVPoll.WaitingForInput and not prefill.pending_bootstrap
    assert prefill.metadata_buffer_index == -1 and not prefill.skip_radix_cache_insert
    prefill.disagg_kv_sender.send([])
    assert prefill.disagg_kv_sender.poll() == KVPoll.Success
    assert made_by_a_scheduler(None).disagg_kv_sender is None


def test_no_row_has_its_logits_computed_for_a_batch_mate_s_log_probabilities() -> None:
    """SGLang leaves out the rows before `compute_extend_logprob_start_len`, in batches where somebody asks for any."""
    from sglang.srt.managers.schedule_batch import compute_extend_logprob_start_len

    prefill = made_by_a_scheduler(bootstrap=None)
    first = compute_extend_logprob_start_len(
        logprob_start_len=prefill.logprob_start_len, prefix_len=0, extend_len=10, full_untruncated_fill_len=10
    )
    assert first == 10


def test_no_answer_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang neither samples a token of it nor decodes it while it waits for the result."""
    nothing = SimpleNamespace(speculative_algorithm=None)
    monkeypatch.setattr("sglang.srt.managers.schedule_batch.get_spec", lambda: nothing)
    prefill = made_by_a_scheduler(bootstrap=None)
    assert prefill.is_prefill_only
    prefill.output_ids.append(0)
    prefill.update_finish_state()
    assert prefill.finished()


def test_requests_whose_kv_is_on_its_way_hold_locks(prefills: Prefills) -> None:
    """On a prefill server they are in no batch any more, and what they hold comes free all the same: nobody is alone."""
    assert not prefills.is_sending
    prefills.scheduler.disagg_prefill_inflight_queue = None
    assert not prefills.is_sending
    prefills.scheduler.disagg_prefill_inflight_queue = ["req"]
    assert prefills.is_sending


def test_who_asks_knows_the_prefill_of_its_question_whoever_began_it(prefills: Prefills) -> None:
    """By it reports count the layers that the question's rows went through."""
    text = Path((30, 34), 0, array("q", range(30, 34)), True, asks=True)
    first, second, other = client([*PATHS, text]), client([text]), client(PATHS)
    *documents, question = ask(prefills, first, [*PATHS, text])
    assert question.redknot.asks and question.redknot.whole
    assert not any(document.redknot.asks for document in documents)
    assert ask(prefills, second, [text]) == ask(prefills, other, PATHS) == []
    assert first.redknot.asking is question.redknot and second.redknot.asking is question.redknot
    assert other.redknot.asking is None
