# SPDX-License-Identifier: Apache-2.0
"""A store in this process's memory, which can be made to fail."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redknot_sglang.errors import StoreError
from redknot_sglang.store.backends import Found, Items


class MemoryStore:
    """Objects by name. fails: what every call says instead of doing anything; None: nothing."""

    def __init__(self) -> None:
        self.objects: dict[str, Tensor] = {}
        self.fails: str | None = None
        self.calls = 0

    def use(self, memory: Tensor) -> None:
        assert memory.dtype is torch.uint8

    def exist(self, names: Sequence[str]) -> list[bool]:
        self._call()
        return [name in self.objects for name in names]

    def put(self, items: Items) -> None:
        self._call()
        for name, data in items:
            self.objects.setdefault(name, data.clone())

    def get(self, items: Items) -> list[Found]:
        self._call()
        return [self._get(name, data) for name, data in items]

    def _get(self, name: str, data: Tensor) -> Found:
        found = self.objects.get(name)
        if found is None:
            return Found.MISSING
        if len(found) != len(data):
            return Found.ODD
        data.copy_(found)
        return Found.THERE

    def remove(self, name: str) -> None:
        self._call()
        self.objects.pop(name, None)

    def clear(self) -> None:
        self._call()
        self.objects.clear()

    def _call(self) -> None:
        self.calls += 1
        if self.fails is not None:
            raise StoreError(self.fails)
