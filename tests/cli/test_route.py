# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from redknot_sglang.cli import route
from redknot_sglang.cli.main import main
from redknot_sglang.measure.launch import reserved_port
from redknot_sglang.route.choice import POLICIES


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--server", "10.0.0.1:30000"], "is no address: give one such as http://10.0.0.1:30000"),
        (["--server", "ftp://a"], "is no address"),
        (["--server", "http://a:1/", "--server", "http://a:1/v1"], "--server http://a:1 is given twice"),
        (["--server", "http://a:1", "--max-body", "0"], "--max-body must be more than 0, got 0"),
        (["--server", "http://a:1", "--check-every", "-1"], "--check-every must be more than 0"),
    ],
)
def test_what_cannot_be_is_said(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", *args]) == 2
    assert says in capsys.readouterr().err


def test_the_command_names_the_policies_that_there_are() -> None:
    assert set(route.POLICIES) == set(POLICIES)


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["route", "--server", "http://127.0.0.1:9", "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_the_process_answers_and_ends() -> None:
    with reserved_port() as free:
        port = free
    command = [
        sys.executable,
        "-m",
        "redknot_sglang.cli.main",
        "route",
        "--server",
        "http://127.0.0.1:9",
        f"--port={port}",
    ]
    router = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert router.stdout is not None
        assert router.stdout.readline() == f"router of 1 servers at http://127.0.0.1:{port}\n"
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/redknot/status", timeout=5) as answer:
                    assert b'"policy": "documents"' in answer.read()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise AssertionError("the router does not answer")
        router.send_signal(signal.SIGINT)
        assert router.wait(20) in (0, 130)
    finally:
        router.kill()
        router.wait()
