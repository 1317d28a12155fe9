# SPDX-License-Identifier: Apache-2.0
"""The diffs of patches/ fit the SGLang that they were written for, and its README accounts for every seam."""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from redknot_sglang.versions import SUPPORTED_SGLANG, folder_of

PATCHES = Path(__file__).resolve().parents[2] / "patches"
FILES = sorted(PATCHES.glob("*.patch"))
# A patch that builds on another one cannot be applied without it.
NEEDS = {"0008-reserve-running-windows.patch": "0007-window-of-a-row.patch"}


def touched(patch: Path) -> list[str]:
    """Paths that the patch writes, relative to the directory that holds the `sglang` package."""
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), re.MULTILINE)


def apply(patches: Sequence[Path], work: Path) -> None:
    """Copy what the patches touch into `work`, apply them in order and compile the results."""
    spec = find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations
    installed = Path(spec.submodule_search_locations[0]).parent
    names = {name for patch in patches for name in touched(patch)}
    for name in names:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        if (installed / name).exists():
            shutil.copyfile(installed / name, work / name)
    # A repository around the temporary directory would make git skip files outside its index.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(work.parent)}
    for patch in patches:
        done = subprocess.run(
            ["git", "apply", "-p1", "--verbose", str(patch)], cwd=work, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{patch.name} does not apply:\n{done.stderr}"
    for name in names:
        before = (installed / name).read_text() if (installed / name).exists() else None
        assert (work / name).read_text() != before, f"{name} was not changed"
        py_compile.compile(str(work / name), doraise=True)


@pytest.mark.pinned
def test_all_apply_in_order(tmp_path: Path) -> None:
    assert len(FILES) >= 10
    apply(FILES, tmp_path)


@pytest.mark.pinned
@pytest.mark.parametrize("patch", FILES, ids=lambda patch: patch.stem)
def test_each_applies_alone(patch: Path, tmp_path: Path) -> None:
    needed = NEEDS.get(patch.name)
    apply([PATCHES / needed, patch] if needed else [patch], tmp_path)


@pytest.mark.parametrize("patch", FILES, ids=lambda patch: patch.stem)
def test_patch_says_why(patch: Path) -> None:
    message, separator, _ = patch.read_text().partition("\n---\n")
    subject, blank, body = (message.split("\n", 2) + ["", ""])[:3]
    assert separator and subject and not blank and len(body.split()) > 20
    assert len(subject) <= 72


def test_patches_stay_within_sglang() -> None:
    for patch in FILES:
        assert touched(patch)
        assert all(name.startswith("sglang/srt/") and name.endswith(".py") for name in touched(patch))


def table_rows(version: str) -> dict[str, list[str]]:
    """Cells of the README's tables by seam, without the backquotes: the first one's, then those of versions up to this one, which may
    leave a seam out.

    Seams that a version leaves out (`GONE` of its hooks) are in the tables of those before it.
    """
    rows: dict[str, list[str]] = {}
    of = SUPPORTED_SGLANG[0]
    for line in (PATCHES / "README.md").read_text().splitlines():
        heading = re.match(r"\| Seam on ([\d.]+) ", line)
        of = heading[1] if heading else of
        if line.startswith("| `") and SUPPORTED_SGLANG.index(of) <= SUPPORTED_SGLANG.index(version):
            first, *rest = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
            if rest[1] == "left out":
                del rows[first]
            else:
                rows[first] = rest
    gone = getattr(import_module(f"redknot_sglang.hooks.{folder_of(version)}"), "GONE", ())
    return {seam: cells for seam, cells in rows.items() if seam not in gone}


@pytest.mark.parametrize("version", SUPPORTED_SGLANG)
def test_tables_name_every_seam_of_a_version_and_how_it_is_hooked(version: str) -> None:
    rows = table_rows(version)
    made = import_module(f"redknot_sglang.hooks.{folder_of(version)}").SEAMS
    seams = {seam.target: seam for seam in made}
    assert set(rows) == set(seams)
    for target, (why, hook, _) in rows.items():
        assert why
        kind, file = hook.split(": ")
        assert kind == seams[target].kind
        module = seams[target].hook.__module__
        assert module == "redknot_sglang." + file.removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("version", SUPPORTED_SGLANG)
def test_rows_of_the_tables_are_in_the_surface_that_is_checked_at_start(version: str) -> None:
    surface = import_module(f"redknot_sglang.seams.{folder_of(version)}.surface").SURFACE
    known = {f"{module}.{name}" for module, names in surface.items() for name in names}
    assert set(table_rows(version)) <= known


def test_tables_name_every_patch() -> None:
    named = {patch for _, _, patch in table_rows(SUPPORTED_SGLANG[0]).values()}
    assert named - {"none yet"} == {patch.name for patch in FILES}
