# SPDX-License-Identifier: Apache-2.0
"""What senders and receivers of SGLang's are given, and what happens where two servers do not mean the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.disaggregation.fake.conn import FakeKVReceiver, FakeKVSender

from redknot_sglang.heads import HeadMap
from redknot_sglang.placement import receiving
from redknot_sglang.placement.needed import most_local
from redknot_sglang.placement.peers import check_ranks, end_refused, name_layout, note_refusal
from redknot_sglang.placement.receiving import UNLIMITED, has_room_for_one, local_room, part_receiver
from redknot_sglang.placement.sending import MOST_PIECES, part_sender, send_in_parts
from redknot_sglang.pool.dealing import Dealing
from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.seams.sglang import KVPoll, StateType
from redknot_sglang.serve.transfers import TransferFigures
from tests.placement.test_slots import Side, one_of_two

HEADS = one_of_two(window=16, sink=4)
PROMPT, LOCAL, ROOM = 100, 4 + 15, 7


class Manager:
    """SGLang's KV manager, as far as a sender's and a receiver's calls reach. infos: what the decode server's ranks said."""

    def __init__(self, *infos: Any) -> None:
        self.kv_args = SimpleNamespace(state_types=[StateType.SWA])
        self.transfer_infos = {ROOM: dict(enumerate(infos))}
        self.attn_tp_rank, self.attn_tp_size = 0, 1
        self.failed: dict[int, str] = {}
        self.status: dict[int, int] = {}
        self.told: list[tuple[Any, ...]] = []

    def record_failure(self, room: int, reason: str) -> None:
        self.failed[room] = reason

    def update_status(self, room: int, status: int) -> None:
        self.status[room] = status

    def sync_status_to_decode_endpoint(self, *call: Any) -> None:
        self.told.append(call)


def target(tokens: int = PROMPT, local: int = LOCAL, is_dummy: bool = False) -> Any:
    return SimpleNamespace(
        dst_kv_indices=np.arange(tokens),
        dst_state_indices=[list(range(local))],
        is_dummy=is_dummy,
        endpoint="there",
        dst_port=1,
    )


class Sender(FakeKVSender):
    """SGLang's `fake` one, with what others have, and a list of what it was given."""

    def __init__(self, manager: Manager) -> None:
        super().__init__(manager, "", ROOM, [], 0)
        self.bootstrap_room, self.num_kv_indices = ROOM, PROMPT
        self.given: list[tuple[Any, Any]] = []

    def send(self, kv_indices: Any, state_indices: Any = None, num_kv_tokens: Any = None) -> None:
        super().send(kv_indices, state_indices, num_kv_tokens)
        self.given.append((kv_indices, state_indices))


def prefilled(*infos: Any) -> tuple[Side, Any, Manager, TransferFigures]:
    """A request of a prefill server whose sender is parted."""
    side, manager = Side(HEADS), Manager(*infos)
    req = side.take(PROMPT)
    req.origin_input_ids, req.disagg_kv_sender = list(range(PROMPT)), Sender(manager)
    scheduler = SimpleNamespace(token_to_kv_pool_allocator=side.allocator, req_to_token_pool=side.rows)
    figures = TransferFigures(ClassBytes(global_slot=10, local_slot=3, probe=5))
    part_sender(scheduler, req, figures)
    return side, req, manager, figures


def send_all(side: Side, req: Any) -> None:
    """As SGLang does: a first chunk, and the last with what it takes for the window of all layers."""
    slots = side.rows.req_to_token[1, :PROMPT].numpy()
    req.disagg_kv_sender.send(slots[:60], None, num_kv_tokens=60)
    req.disagg_kv_sender.send(slots[60:], [np.arange(3)], num_kv_tokens=40)


def test_the_last_chunk_brings_sinks_and_window_instead_of_sglang_s_window() -> None:
    side, req, manager, figures = prefilled(target(), target(0, 0, is_dummy=True))
    send_all(side, req)
    (_, first), (_, last) = req.disagg_kv_sender.given
    assert first is None
    kept = [at for at, slot in enumerate(side.local_of(PROMPT)) if slot]
    assert kept == [*range(4), *range(85, 100)]
    assert last[0].tolist() == [side.local_of(PROMPT)[at] for at in kept]
    assert req.disagg_kv_sender.poll() == KVPoll.Success and not manager.failed
    assert figures.status() == {
        "sent_tokens": {"global": PROMPT, "local": LOCAL},
        "sent_bytes": {"global": PROMPT * 10, "local": LOCAL * 3},
        "stock_bytes": PROMPT * 13,
    }


def test_a_parted_sender_is_let_go_with_its_last_chunk() -> None:
    side, req, *_ = prefilled(target())
    assert "send" in vars(req.disagg_kv_sender)
    send_all(side, req)
    assert "send" not in vars(req.disagg_kv_sender)


@pytest.mark.parametrize(
    ("tokens", "local"), [(PROMPT - 1, LOCAL), (PROMPT + 1, LOCAL), (PROMPT, LOCAL - 1), (PROMPT, LOCAL + 1)]
)
def test_counts_that_differ_end_the_transfer_on_both_sides(tokens: int, local: int) -> None:
    side, req, manager, figures = prefilled(target(tokens, local))
    send_all(side, req)
    assert len(req.disagg_kv_sender.given) == 1, "the last chunk was sent all the same"
    assert manager.failed[ROOM].startswith(f"the prefill server has KV of {PROMPT} tokens")
    assert f"wants that of {tokens} and {local}" in manager.failed[ROOM]
    assert manager.status == {ROOM: KVPoll.Failed} and manager.told == [("there", 1, ROOM, KVPoll.Failed, 0)]
    assert figures.status()["sent_tokens"]["local"] == 0


def test_kv_that_is_not_there_ends_the_transfer_too() -> None:
    side, req, manager, _ = prefilled(target())
    side.allocator.free_swa(side.rows.req_to_token[1, 90:91].long())
    send_all(side, req)
    assert "have no local KV" in manager.failed[ROOM] and len(req.disagg_kv_sender.given) == 1


def test_a_receiver_says_where_sinks_and_window_go() -> None:
    side = Side(HEADS)
    req = side.take(PROMPT)
    given: list[Any] = []

    class Receiver(FakeKVReceiver):
        def send_metadata(self, kv_indices: Any, aux_index: Any = None, state_indices: Any = None, **rest: Any) -> None:
            super().send_metadata(kv_indices, aux_index, state_indices, **rest)
            given.append((len(kv_indices), aux_index, state_indices, rest))

    receiver = Receiver(Manager(), "", ROOM)
    prealloc = SimpleNamespace(
        token_to_kv_pool_allocator=side.allocator, req_to_token_pool=side.rows, kv_manager=Manager()
    )
    part_receiver(prealloc, SimpleNamespace(req=req, kv_receiver=receiver))
    receiver.send_metadata(side.rows.req_to_token[1, :PROMPT].numpy(), 5, [np.arange(3)], decode_prefix_len=0)
    ((tokens, aux, states, rest),) = given
    kept = [slot for slot in side.local_of(PROMPT) if slot]
    assert (tokens, aux, rest) == (PROMPT, 5, {"decode_prefix_len": 0}) and states[0].tolist() == kept
    assert receiver.has_sent_metadata and "send_metadata" not in vars(receiver)


@pytest.mark.parametrize("count", [0, 1, MOST_PIECES, MOST_PIECES + 1, 3 * MOST_PIECES])
@pytest.mark.parametrize("fails_at", [None, 0, 1])
def test_mooncake_gets_no_more_pieces_at_a_time_than_it_takes(count: int, fails_at: int | None) -> None:
    class Mooncake:
        def __init__(self) -> None:
            self.parts: list[list[int]] = []

        def _transfer_data(self, session: str, pieces: list[int]) -> int:
            self.parts.append(list(pieces))
            return -1 if len(self.parts) - 1 == fails_at else 0

    manager = Mooncake()
    send_in_parts(manager)
    send_in_parts(manager)
    result = manager._transfer_data("there", list(range(count)))
    whole = -(-count // MOST_PIECES)
    failed = fails_at is not None and fails_at < whole
    assert result == (-1 if failed else 0)
    assert len(manager.parts) == (fails_at + 1 if failed and fails_at is not None else whole)
    if not failed:
        assert [piece for part in manager.parts for piece in part] == list(range(count))
    assert all(len(part) <= MOST_PIECES for part in manager.parts)


def test_another_transfer_is_left_as_it_is() -> None:
    manager = Manager()
    send_in_parts(manager)
    assert "_transfer_data" not in vars(manager)


# ---- how many requests a decode server takes ----------------------------------------------------------------------------------


def request(prompt: int, answer: int) -> Any:
    return SimpleNamespace(origin_input_ids=[0] * prompt, sampling_params=SimpleNamespace(max_new_tokens=answer))


def queues(size: int, running: list[Any], waiting: list[Any] = (), moving: list[Any] = (), back: list[Any] = ()) -> Any:  # type: ignore[assignment]
    batch = SimpleNamespace(reqs=running)
    return SimpleNamespace(
        scheduler=SimpleNamespace(running_batch=batch, last_batch=batch, waiting_queue=list(waiting)),
        transfer_queue=SimpleNamespace(queue=[SimpleNamespace(req=req) for req in moving]),
        retracted_queue=list(back),
        token_to_kv_pool_allocator=SimpleNamespace(size_swa=size),
    )


def test_every_request_with_slots_counts_once_with_the_most_that_it_will_hold() -> None:
    most = most_local(UNLIMITED, HEADS)
    running, waiting, moving, back = request(5, 5), request(500, 5), request(5, 500), request(900, 900)
    prealloc = queues(1000, [running], [waiting], [moving], [back])
    assert local_room(prealloc, HEADS, count_retracted=False) == 1000 - 10 - 2 * most
    assert local_room(prealloc, HEADS, count_retracted=True) == 1000 - 10 - 3 * most


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_one_more_is_taken_while_it_can_have_all_that_it_may_need(extra: int) -> None:
    most = most_local(UNLIMITED, HEADS)
    for size, room in ((most * (extra + 2), True), (most * (extra + 2) - 1, False)):
        prealloc = queues(size, [request(500, 500)])
        assert has_room_for_one(prealloc, HEADS, extra, count_retracted=True) is room


def test_an_answer_longer_than_the_pool_is_no_reason_to_wait() -> None:
    prealloc = queues(most_local(UNLIMITED, HEADS), [])
    assert receiving.local_slots_of(request(10, 10**6), HEADS) == most_local(UNLIMITED, HEADS)
    assert has_room_for_one(prealloc, HEADS, 0, count_retracted=True)


# ---- peers --------------------------------------------------------------------------------------------------------------------


def layout(head_map: HeadMap, dtype: torch.dtype = torch.float32) -> str:
    kv_args = SimpleNamespace(kv_cache_dtype_str="auto")
    name_layout(kv_args, HeadClassPool(4, 4, head_map, 2, dtype, "cpu"))
    return str(kv_args.kv_cache_dtype_str)


def test_servers_whose_kv_is_not_the_same_call_it_by_other_names() -> None:
    maps = [HEADS, one_of_two(window=17, sink=4), one_of_two(16, 5), HeadMap(1, 2, ((False, True),), window=16, sink=4)]
    names = {layout(head_map) for head_map in maps} | {layout(HEADS, torch.bfloat16)}
    assert len(names) == 5 and layout(HEADS) in names
    untouched = SimpleNamespace(kv_cache_dtype_str="auto")
    name_layout(untouched, object())
    assert untouched.kv_cache_dtype_str == "auto"


def test_ranks_that_have_other_heads_are_no_peers() -> None:
    """Of two servers with two ranks each one could not deal its heads out."""
    heads = HeadMap(2, 2, ((False, True), (False, True)), window=16, sink=4)
    names = set()
    for dealing in (Dealing.of(heads, 1, 2), Dealing.of(heads, 1, 2, "weights are packed")):
        kv_args = SimpleNamespace(kv_cache_dtype_str="auto")
        for rank in range(2):
            name_layout(
                kv_args, HeadClassPool(4, 4, heads, 2, torch.float32, "cpu", rank=rank, ranks=2, dealing=dealing)
            )
            names.add(kv_args.kv_cache_dtype_str)
    assert len(names) == 2


def test_other_ranks_are_refused() -> None:
    manager: Any = Manager()
    check_ranks(manager, SimpleNamespace(attn_tp_size=1))
    with pytest.raises(
        RuntimeError, match="--tp-size 2 and the decode server 1: .* start them with the same --tp-size"
    ):
        check_ranks(manager, SimpleNamespace(attn_tp_size=2))


def test_requests_for_a_server_that_was_refused_end_with_the_reason_and_others_wait_on() -> None:
    manager = Manager()
    waiting = {
        address: [
            SimpleNamespace(kv_receiver=SimpleNamespace(conclude_state=None), req=SimpleNamespace(bootstrap_room=room))
        ]
        for address, room in (("a:1", 3), ("b:1", 4))
    }
    note_refusal(manager, "a:1", RuntimeError("KV cache dtype mismatch: prefill server has kv_cache_dtype=x"))
    left = end_refused(manager, waiting, [waiting["a:1"][0], waiting["b:1"][0]])
    assert left == waiting["b:1"]
    assert waiting["a:1"][0].kv_receiver.conclude_state == KVPoll.Failed
    assert (
        "start both with the same model, --dtype and --redknot-head-map" in manager.failed[3]
        and 4 not in manager.failed
    )
    assert end_refused(manager, waiting, left) == left, "a reason is used once"
