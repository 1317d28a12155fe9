# SPDX-License-Identifier: Apache-2.0
"""What is said where Mooncake's master cannot be run. tests/serving/test_mooncake.py runs it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import mooncake
from redknot_sglang.errors import CliError


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package that can be imported, with a master that nobody has made executable."""
    (tmp_path / "mooncake_master").touch(mode=0o644)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(mooncake, "find_spec", lambda name: spec)
    done: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(mooncake.subprocess, "run", lambda *args, **kwargs: done)
    return tmp_path


def test_a_master_that_was_only_unpacked_is_told(package: Path) -> None:
    with pytest.raises(CliError, match=f"run `chmod \\+x {package}/mooncake_master`"):
        mooncake.program()
    (package / "mooncake_master").chmod(0o755)
    assert mooncake.program() == package / "mooncake_master"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mooncake, "find_spec", lambda name: None)
    with pytest.raises(CliError, match="make install"):
        mooncake.program()


def test_no_client_is_given_the_master_s_port() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(50):
        assert not first <= mooncake._free_port() <= last


def test_a_master_whose_port_somebody_else_has_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: Path
) -> None:
    """It ends, and who listens there is not taken for it."""
    program = package / "mooncake_master"
    program.write_text("#!/bin/sh\nsleep 0.1\necho port taken\nexit 1\n")
    program.chmod(0o755)
    master = mooncake.Master(tmp_path)
    with socket.create_server(("127.0.0.1", master.port)), pytest.raises(CliError, match="port taken"):
        master.start()
