# SPDX-License-Identifier: Apache-2.0
"""Objects that were cut, garbled or meant for somebody else are told from good ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.store.envelope import SIZE, Envelope, Refusal
from redknot_sglang.store.objects import Piece, block, mark

HERE, ELSEWHERE = Envelope(bytes(32)), Envelope(bytes(range(32)))
PIECE = block(b"d" * 32, 128, False)


def sealed(payload: bytes, piece: Piece = PIECE, envelope: Envelope = HERE) -> torch.Tensor:
    data = torch.tensor([0] * SIZE + list(payload), dtype=torch.uint8)
    envelope.seal(piece, data)
    assert bytes(data[SIZE:].tolist()) == payload
    return data


@given(st.binary(max_size=300))
def test_a_good_object_is_good(payload: bytes) -> None:
    assert HERE.refusal(PIECE, sealed(payload)) is None


@given(st.binary(max_size=300), st.data())
def test_a_changed_bit_is_noticed_wherever_it_is(payload: bytes, data: st.DataObject) -> None:
    garbled = sealed(payload)
    garbled[data.draw(st.integers(0, len(garbled) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert HERE.refusal(PIECE, garbled) is not None


@given(st.binary(min_size=1, max_size=300), st.data())
def test_another_length_is_noticed(payload: bytes, data: st.DataObject) -> None:
    good = sealed(payload)
    assert HERE.refusal(PIECE, good[: data.draw(st.integers(SIZE, len(good) - 1))]) is Refusal.CUT
    assert HERE.refusal(PIECE, torch.cat([good, good[-1:]])) is Refusal.CUT


def test_reasons() -> None:
    payload = bytes(40)
    assert HERE.refusal(PIECE, torch.zeros(SIZE + 40, dtype=torch.uint8)) is Refusal.GARBLED
    assert HERE.refusal(PIECE, sealed(payload, envelope=ELSEWHERE)) is Refusal.OTHER_MAP
    for other in (block(b"e" * 32, 128, False), block(b"d" * 32, 64, False), mark(b"d" * 32, 128)):
        assert HERE.refusal(PIECE, sealed(payload, other)) is Refusal.OTHER_PATH
