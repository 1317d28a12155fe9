# SPDX-License-Identifier: Apache-2.0
"""The SGLang that is installed must be one that the seams were written for."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from redknot_sglang import versions
from redknot_sglang.errors import SeamError

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def test_the_package_asks_for_the_newest_version_that_it_knows() -> None:
    pinned = re.search(r'"sglang==([\d.]+)"', PROJECT.read_text())
    assert pinned is not None and pinned[1] == versions.SUPPORTED_SGLANG[-1]


def test_the_installed_one_is_known() -> None:
    versions.check_version()
    assert versions.sglang_version() in versions.SUPPORTED_SGLANG


def test_other_versions_and_none_at_all_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "0.4.0")
    with pytest.raises(SeamError, match=r"supports SGLang 0\.5\.17, found 0\.4\.0; pip install sglang==0\.5\.17"):
        versions.check_version()

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", absent)
    assert versions.sglang_version() is None
    with pytest.raises(SeamError, match="found None; pip install"):
        versions.check_version()
