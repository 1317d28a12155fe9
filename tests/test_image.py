# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile of compose.yaml, which is not built here: what it copies is there, and is enough for the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from tests.serving.compose import read_file

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def copied() -> list[str]:
    """What is copied out of the repository, stage by stage."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_the_wheel_is_made_of_what_is_copied(tmp_path: Path) -> None:
    assert {"pyproject.toml", "redknot_sglang", "requirements.txt", "requirements-dev.txt"} <= set(copied())
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    # What `pip wheel` calls.
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with ZipFile(tmp_path / made.stdout.splitlines()[-1]) as wheel:
        names = wheel.namelist()
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "redknot_sglang.plugin:register" in wheel.read(entries).decode()
    assert "redknot_sglang/_stub/sgl_kernel/__init__.py" in names


def test_the_store_is_pinned_where_the_image_looks_for_it() -> None:
    (pattern,) = re.findall(r"grep '(\S+)'", DOCKERFILE)
    pins = (ROOT / "requirements-dev.txt").read_text()
    assert len(re.findall(pattern, pins, re.MULTILINE)) == 1


def test_all_services_are_of_the_one_image() -> None:
    services = read_file(ROOT / "compose.yaml")["services"].values()
    assert {(service["image"], service["build"]) for service in services} == {("redknot-sglang:cpu", ".")}
    volumes = {volume.split(":")[0] for service in services for volume in service.get("volumes", ())}
    assert volumes and all((ROOT / volume / "head_map.json").is_file() for volume in volumes)
