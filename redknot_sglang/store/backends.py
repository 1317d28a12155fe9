# SPDX-License-Identifier: Apache-2.0
"""SGLang's storage backends as stores of objects of known size.

SGLang's classes find the store, set it up and know its settings; what they offer beyond that is for pages of tokens. Each call
here may take as long as the store likes, so only background threads make them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from torch import Tensor

from redknot_sglang.errors import StoreError

# Names with what is to be written, or with where it goes: uint8, contiguous, within memory that `use` was told of.
Items = Sequence[tuple[str, Tensor]]


class Found(Enum):
    """What came of reading an object."""

    THERE = auto()
    MISSING = auto()
    ODD = auto()  # it has another size


class Objects(Protocol):
    """A store of objects."""

    def use(self, memory: Tensor) -> None:
        """Objects are read into and written from this memory from now on: uint8, on the CPU."""

    def exist(self, names: Sequence[str]) -> list[bool]:
        """Which objects are there. Raises StoreError."""

    def put(self, items: Items) -> None:
        """Write objects; one that is there may be left as it is. Raises StoreError if one of them could not be written."""

    def get(self, items: Items) -> list[Found]:
        """Read objects, at least up to the first one that is not there as it should be; what came of each. Raises StoreError."""

    def remove(self, name: str) -> None:
        """Remove an object, if it is there. Raises StoreError."""

    def clear(self) -> None:
        """Remove all objects, also those of other models. Raises StoreError."""


class Files:
    """SGLang's HiCacheFile: one file for each object, in one folder."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def use(self, memory: Tensor) -> None:
        """Nothing: files are read into any memory."""

    def exist(self, names: Sequence[str]) -> list[bool]:
        """As `Objects.exist`. A folder that cannot be read has no objects."""
        return [bool(self._backend.exists(name)) for name in names]

    def put(self, items: Items) -> None:
        """As `Objects.put`. SGLang writes beside and renames, so others never see half an object."""
        for name, data in items:
            if not self._backend.set(name, data):
                raise StoreError(f"a file could not be written in {self._backend.file_path}")

    def get(self, items: Items) -> list[Found]:
        """As `Objects.get`. A longer file is read as far as the object goes."""
        found = []
        for name, data in items:
            found.append(self._get(name, data))
            if found[-1] is not Found.THERE:
                # Each file may take its time, and nobody wants the others now.
                break
        return found

    def _get(self, name: str, data: Tensor) -> Found:
        try:
            return Found.MISSING if self._backend.get(name, data) is None else Found.THERE
        except OSError as error:
            if error.errno is None:
                # SGLang's own error: fewer bytes than asked for.
                return Found.ODD
            raise StoreError(str(error)) from None

    def remove(self, name: str) -> None:
        """As `Objects.remove`."""
        try:
            os.remove(os.path.join(self._backend.file_path, self._backend._get_component_key(name) + ".bin"))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(str(error)) from None

    def clear(self) -> None:
        """As `Objects.clear`."""
        if not self._backend.clear():
            raise StoreError(f"files in {self._backend.file_path} could not be removed")


# Codes of Mooncake Store: of objects that are not there or not complete yet, and of memory that is too small for one.
_NO_OBJECT = range(-799, -699)
_TOO_SMALL = -600


class Mooncake:
    """SGLang's MooncakeStore: objects in the memory of all servers that share a Mooncake master."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._client = backend, backend.store

    def use(self, memory: Tensor) -> None:
        """As `Objects.use`: the transfer engine reads and writes it. Raises StoreError."""
        try:
            self._backend.register_buffer(memory)
        except RuntimeError as error:
            raise StoreError(str(error)) from None

    def exist(self, names: Sequence[str]) -> list[bool]:
        """As `Objects.exist`."""
        codes = self._client.batch_is_exist(list(names)) if names else []
        _check(codes)
        return [code == 1 for code in codes]

    def put(self, items: Items) -> None:
        """As `Objects.put`."""
        if items:
            _check(self._client.batch_put_from(*_placed(items)))

    def get(self, items: Items) -> list[Found]:
        """As `Objects.get`."""
        codes = self._client.batch_get_into(*_placed(items)) if items else []
        return [_found(code, data.nbytes) for code, (_, data) in zip(codes, items, strict=True)]

    def remove(self, name: str) -> None:
        """As `Objects.remove`. One that somebody reads stays."""
        self._client.remove(name)

    def clear(self) -> None:
        """As `Objects.clear`."""
        self._client.remove_all()


def _placed(items: Items) -> tuple[list[str], list[int], list[int]]:
    return [name for name, _ in items], [data.data_ptr() for _, data in items], [data.nbytes for _, data in items]


def _check(codes: Sequence[int]) -> None:
    bad = [code for code in codes if code < 0]
    if bad:
        raise StoreError(f"Mooncake Store answered {bad[0]}")


def _found(code: int, size: int) -> Found:
    if code == size:
        return Found.THERE
    if code >= 0 or code == _TOO_SMALL:
        return Found.ODD
    if code in _NO_OBJECT:
        return Found.MISSING
    raise StoreError(f"Mooncake Store answered {code}")


# By SGLang's names.
KINDS: dict[str, Callable[[Any], Objects]] = {"file": Files, "mooncake": Mooncake}
