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


@pytest.mark.parametrize(("installed", "folder"), [("0.5.17", "v0_5_17"), ("0.4.0", "v0_5_17"), (None, "v0_5_17")])
def test_what_is_made_for_a_version_lies_in_its_folder(
    installed: str | None, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "sglang_version", lambda: installed)
    assert versions.version_folder() == folder
    package = Path(versions.__file__).parent
    for room in ("seams", "hooks"):
        assert (package / room / folder / "__init__.py").is_file()


def test_every_known_version_has_its_folders() -> None:
    folders = {"v" + known.replace(".", "_") for known in versions.SUPPORTED_SGLANG}
    package = Path(versions.__file__).parent
    for room in ("seams", "hooks"):
        assert {path.name for path in (package / room).glob("v*")} == folders
