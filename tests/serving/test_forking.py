# SPDX-License-Identifier: Apache-2.0
"""Forked servers are like those that are started: exit codes and messages arrive, and none outlives whoever asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.serving import harness

pytestmark = [pytest.mark.serving, pytest.mark.skipif(not harness.ON_CPU, reason="servers on a GPU are not forked")]

ARGS = ("--redknot", f"--redknot-head-map={harness.HEAD_MAP}")


def is_there(url: str) -> bool:
    """Whether something answers."""
    try:
        urllib.request.urlopen(url + "/health", timeout=30).close()
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def test_a_server_ends_with_its_client_and_others_stay() -> None:
    with harness.launch(ARGS) as other:
        with harness.launch(ARGS) as server:
            first, second = (one.generate([500] * 20, 3)["output_ids"] for one in (server, other))
            assert first == second
            # Not asked to end, and so without a chance to end its server.
            server.running.process.kill()
            end = time.monotonic() + 30
            while is_there(server.url) and time.monotonic() < end:
                time.sleep(0.1)
            assert not is_there(server.url)
        assert other.generate([500] * 20, 3)["output_ids"] == second


def test_exit_code_and_message_are_the_server_s() -> None:
    command = [sys.executable, *harness.forker().program(), "--redknot"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "arguments are required: --model-path" in done.stderr
    code, log = harness.refused(["--redknot", "--redknot-head-map=/nonexistent"])
    assert code == 1 and "redknot: error: " in log and "Traceback" not in log


def test_variables_that_come_too_late_are_refused() -> None:
    name = "SGLANG_TEST_RETRACT"
    assert name in harness.EARLY
    command = [sys.executable, *harness.forker().program([name])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, name: "1"})
    assert done.returncode == 1 and f"{name}: read when SGLang is imported" in done.stderr


@pytest.mark.full
def test_servers_end_with_the_process_that_they_are_forked_from() -> None:
    # One of its own, which imports everything: for nightly runs.
    forker = harness.Forker()
    command = [sys.executable, *forker.program(), *harness.flags(ARGS), "--port=1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        time.sleep(1)
        assert client.poll() is None
        forker.close()
        assert client.wait(60) != 0
