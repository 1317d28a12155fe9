# SPDX-License-Identifier: Apache-2.0
"""What `make dist` would give to a package index: what is in it, what is not, and that its version is said in one place."""

from __future__ import annotations

import re
import tarfile
from configparser import ConfigParser
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

from redknot_sglang import __version__
from redknot_sglang.seams import PLUGINS
from tests.release.built import ROOT, build, copy_tracked, unpacked

# Folders of users, and of machines that build.
MACHINE_PATH = re.compile(rb"/home/\w|/root/|/Users/|/work/|/tmp/")
META = f"redknot_sglang-{__version__}.dist-info"


@dataclass(frozen=True)
class Release:
    """Contents by name: of the source distribution (without its one folder), of the wheel made of it, and of one made of the checkout."""

    sdist: dict[str, bytes]
    wheel: dict[str, bytes]
    direct: dict[str, bytes]

    def metadata(self) -> Message:
        """What an index and pip read of the wheel."""
        return message_from_string(self.wheel[f"{META}/METADATA"].decode())


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    source = copy_tracked(folder / "checkout")
    # What must not get in although it lies where a build looks.
    (source / "eval" / "results").mkdir(parents=True)
    (source / "eval" / "results" / "one.json").write_text("{}")
    sdist = build("sdist", source, folder / "dist")
    wheel = build("wheel", unpacked(sdist, folder / "unpacked"), folder / "dist")
    return Release(_archived(sdist), _zipped(wheel), _zipped(build("wheel", source, folder / "direct")))


def _archived(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        return {name.split("/", 1)[1]: file.read() for name, file in found.items() if file is not None}


def _zipped(path: Path) -> dict[str, bytes]:
    with ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def package_files() -> set[str]:
    """All files of the package in this checkout, by their paths from its root."""
    files = (path for path in (ROOT / "redknot_sglang").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_is_the_package_and_nothing_else(release: Release) -> None:
    described = {f"{META}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt")}
    assert set(release.wheel) == package_files() | described | {f"{META}/licenses/LICENSE"}


def test_the_source_distribution_adds_what_a_build_needs_and_the_changelog(release: Release) -> None:
    made = {"PKG-INFO", "setup.cfg"} | {name for name in release.sdist if name.startswith("redknot_sglang.egg-info/")}
    added = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"}
    assert set(release.sdist) - made == package_files() | added


def test_the_source_distribution_builds_the_wheel_of_the_checkout(release: Release) -> None:
    assert release.wheel == release.direct


def test_both_have_the_licence(release: Release) -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    assert release.sdist["LICENSE"] == licence
    assert release.wheel[f"{META}/licenses/LICENSE"] == licence
    assert release.metadata()["License-Expression"] == "Apache-2.0"


def test_nothing_names_a_folder_of_a_machine(release: Release) -> None:
    named = {
        name for files in (release.sdist, release.wheel) for name, data in files.items() if MACHINE_PATH.search(data)
    }
    assert not named


def test_entry_points_are_the_command_and_sglang_s_plugin(release: Release) -> None:
    entries = ConfigParser(delimiters=("=",))
    entries.read_string(release.wheel[f"{META}/entry_points.txt"].decode())
    assert {group: dict(entries[group]) for group in entries.sections()} == {
        "console_scripts": {"redknot": "redknot_sglang.cli.main:main"},
        PLUGINS: {"redknot": "redknot_sglang.plugin:register"},
    }


def test_the_version_is_that_of_the_package_and_of_the_changelog(release: Release) -> None:
    assert release.metadata()["Version"] == __version__
    assert "dynamic" in (text := (ROOT / "pyproject.toml").read_text()) and f'"{__version__}"' not in text
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \((unreleased|\d{4}-\d\d-\d\d)\)", heading) for heading in headings)
    versions = [tuple(int(part) for part in heading.split()[0].split(".")) for heading in headings]
    assert versions == sorted(set(versions), reverse=True)
    assert headings[0].split()[0] == __version__
    assert all("unreleased" not in heading for heading in headings[1:])


@pytest.mark.parametrize("tool", ["dist", "docs"])
def test_tools_are_pinned(tool: str) -> None:
    group = re.search(rf"^{tool} = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert group is not None
    lines = (ROOT / f"requirements-{tool}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    assert set(re.findall(r'"([a-z]+)', group[1])) <= {pin.split("==")[0] for pin in pins}
