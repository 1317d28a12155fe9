# SPDX-License-Identifier: Apache-2.0
"""What segmented requests read on the host is loaded before anything reads it, and only where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang.pool.relocation import RelocationQueue
from redknot_sglang.reuse.host import load_own_path, settle
from redknot_sglang.reuse.isolated import IsolatedPrefills


class Loads:
    """Notes what is begun and waited for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, operations: Sequence[Any]) -> None:
        self.said += operations

    def wait_for_layer(self, layer: int) -> None:
        raise AssertionError("nothing but a forward waits for one layer")

    def wait(self) -> None:
        self.said.append("wait")


def test_loads_that_no_forward_has_begun_are_waited_for_before_kv_is_read() -> None:
    queue, loads = RelocationQueue(), Loads()
    queue.loads = loads
    pool, facts = SimpleNamespace(relocations=queue), Any
    settle(pool, facts, IsolatedPrefills())  # type: ignore[arg-type]
    assert loads.said == [], "without loads nobody waits"
    queue.add_load("load")
    settle(pool, SimpleNamespace(rotation=None), IsolatedPrefills())  # type: ignore[arg-type]
    assert loads.said == ["wait", "load", "wait"] and not queue.has_loads


class Tree:
    """Loads what a request asks for; the lock takes some room away."""

    def __init__(self, adder: Any, locked: int) -> None:
        self._adder, self._locked, self.locks = adder, locked, 0

    def inc_lock_ref(self, node: int) -> Any:
        self.locks += 1
        self._adder.rem_total_tokens -= self._locked
        return SimpleNamespace(to_dec_params=lambda: None)

    def dec_lock_ref(self, node: int, params: Any) -> None:
        self.locks -= 1

    def load_found(self, req: Any) -> torch.Tensor:
        assert self.locks == 1
        req.last_node = req.best_match_node
        return torch.tensor([7, 8, 9])


@pytest.mark.parametrize(("room", "local_room", "loads"), [(16, 3, True), (15, 3, False), (16, 2, False)])
def test_the_own_path_comes_back_if_there_is_room_beside_its_locks(room: int, local_room: int, loads: bool) -> None:
    adder = SimpleNamespace(rem_total_tokens=room, rem_swa_tokens=local_room)
    tree = Tree(adder, locked=5)
    req = SimpleNamespace(
        needs_host_load_back=lambda: True,
        full_untruncated_fill_ids=range(15),
        prefix_indices=torch.tensor([1, 2, 3, 4, 5]),
        last_node=4,
        best_match_node=9,
        host_hit_length=3,
        swa_host_hit_length=2,
        cache_protected_len=5,
    )
    load_own_path(tree, adder, req)
    assert tree.locks == 0
    assert len(req.prefix_indices) == req.cache_protected_len == (8 if loads else 5)
    # SGLang's admission finds nothing more to load.
    assert req.last_node == req.best_match_node == (9 if loads else 4)
    assert req.host_hit_length == req.swa_host_hit_length == 0
