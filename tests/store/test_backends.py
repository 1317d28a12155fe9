# SPDX-License-Identifier: Apache-2.0
"""SGLang's backends as stores of objects: files for real, Mooncake's client by its codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang.errors import StoreError
from redknot_sglang.seams.sglang import HiCacheStorageConfig, StorageBackendFactory
from redknot_sglang.store.backends import KINDS, Files, Found, Mooncake
from tests.versions import needs_host_tier

pytestmark = needs_host_tier


def files(folder: Path, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> Files:
    """A store over files in a folder."""
    monkeypatch.setenv("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR", str(folder))
    config = HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, False, None, extra_config=extra)
    store = KINDS["file"](StorageBackendFactory.create_backend("file", config, None))
    assert isinstance(store, Files)
    return store


def data(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_files_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = files(tmp_path / "objects", monkeypatch)
    store.put([("a", data(1, 2, 3)), ("b", data(4))])
    # What is there stays: a name says what is in an object.
    store.put([("a", data(9, 9, 9))])
    assert store.exist(["a", "c", "b"]) == [True, False, True]
    into = [torch.zeros(n, dtype=torch.uint8) for n in (3, 1, 1, 3)]
    # Nothing is read behind one that is not there.
    found = store.get(list(zip(("a", "b", "c", "a"), into, strict=True)))
    assert found == [Found.THERE, Found.THERE, Found.MISSING]
    assert torch.equal(into[0], data(1, 2, 3)) and torch.equal(into[1], data(4)) and not into[3].any()
    assert store.get([("a", torch.zeros(4, dtype=torch.uint8))]) == [Found.ODD]
    store.remove("a")
    store.remove("a")
    assert store.exist(["a", "b"]) == [False, True]
    store.clear()
    assert store.exist(["b"]) == [False]


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = files(tmp_path / "objects", monkeypatch, min_free_space="1000000T")
    with pytest.raises(StoreError, match="could not be written"):
        store.put([("a", data(1))])
    assert store.exist(["a"]) == [False] and not list((tmp_path / "objects").iterdir())


def test_a_folder_that_is_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "objects"
    store = files(folder, monkeypatch)
    folder.rmdir()
    folder.write_text("")
    assert store.exist(["a"]) == [False]
    for ask in (lambda: store.get([("a", data(1))]), lambda: store.put([("a", data(1))]), lambda: store.remove("a")):
        with pytest.raises(StoreError):
            ask()


class Client:
    """Mooncake's, with the codes that it is to answer."""

    def __init__(self, codes: list[int]) -> None:
        self.codes, self.asked = codes, list[Any]()

    def _answer(self, *asked: Sequence[Any]) -> list[int]:
        self.asked.append(asked)
        return self.codes

    batch_is_exist = batch_put_from = batch_get_into = _answer


def mooncake(*codes: int) -> tuple[Mooncake, Client]:
    client = Client(list(codes))
    return Mooncake(SimpleNamespace(store=client)), client


def test_mooncake_gets_addresses_and_sizes() -> None:
    store, client = mooncake(0, 0)
    one, two = data(1, 2), data(3)
    store.put([("a", one), ("b", two)])
    assert client.asked == [(["a", "b"], [one.data_ptr(), two.data_ptr()], [2, 1])]


def test_mooncake_s_codes() -> None:
    items = [("a", data(1, 2)), ("b", data(1)), ("c", data(1)), ("d", data(1, 2))]
    assert mooncake(2, -704, -600, 1)[0].get(items) == [Found.THERE, Found.MISSING, Found.ODD, Found.ODD]
    assert mooncake(1, 0)[0].exist(["a", "b"]) == [True, False]
    store = mooncake(-900, 0)[0]
    for ask in (lambda: store.get(items[:2]), lambda: store.put(items[:2]), lambda: store.exist(["a", "b"])):
        with pytest.raises(StoreError, match="-900"):
            ask()


def test_nothing_is_asked_for_nothing() -> None:
    store, client = mooncake()
    store.put([])
    assert store.get([]) == [] and store.exist([]) == [] and not client.asked
