# SPDX-License-Identifier: Apache-2.0
"""The SGLang that is installed must be one that the seams were written for."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from redknot_sglang import versions
from redknot_sglang.errors import SeamError

ROOT = Path(__file__).resolve().parent.parent
# Files of pins by the SGLang that is in them.
PINS = {
    version: "requirements.txt" if version == versions.PINNED_SGLANG else f"requirements-{version}.txt"
    for version in versions.SUPPORTED_SGLANG
}


def test_the_package_asks_for_the_versions_that_it_knows() -> None:
    asked = re.search(r'"sglang>=([\d.]+),<=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert asked is not None and asked.groups() == (versions.SUPPORTED_SGLANG[0], versions.SUPPORTED_SGLANG[-1])


@pytest.mark.parametrize("version", versions.SUPPORTED_SGLANG)
def test_every_version_has_its_pins(version: str) -> None:
    lines = (ROOT / PINS[version]).read_text().splitlines()
    assert f"sglang=={version}" in lines
    # No address of an index, and nothing without a version.
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines if not line.startswith("#"))


def test_the_installed_one_is_known() -> None:
    versions.check_version()
    assert versions.sglang_version() in versions.SUPPORTED_SGLANG


def test_other_versions_and_none_at_all_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "0.4.0")
    message = r"supports SGLang 0\.5\.17, 0\.5\.18, 0\.5\.23, found 0\.4\.0; pip install sglang==0\.5\.17"
    with pytest.raises(SeamError, match=message):
        versions.check_version()

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", absent)
    assert versions.sglang_version() is None
    with pytest.raises(SeamError, match="found None; pip install"):
        versions.check_version()


@pytest.mark.parametrize(
    ("installed", "folders"),
    [
        ("0.5.17", ("v0_5_17",)),
        ("0.5.18", ("v0_5_17", "v0_5_18")),
        ("0.5.23", ("v0_5_17", "v0_5_18", "v0_5_23")),
        ("0.4.0", ("v0_5_17", "v0_5_18", "v0_5_23")),
        (None, ("v0_5_17", "v0_5_18", "v0_5_23")),
    ],
)
def test_a_version_is_served_from_its_folder_and_those_of_versions_before(
    installed: str | None, folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "sglang_version", lambda: installed)
    assert versions.version_folders() == folders and versions.version_folder() == folders[-1]


def test_every_known_version_has_its_folders() -> None:
    folders = {versions.folder_of(known) for known in versions.SUPPORTED_SGLANG}
    package = Path(versions.__file__).parent
    for room in ("seams", "hooks"):
        assert {path.name for path in (package / room).glob("v*")} == folders
        assert all((package / room / folder / "__init__.py").is_file() for folder in folders)
