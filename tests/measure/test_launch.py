# SPDX-License-Identifier: Apache-2.0
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redknot_sglang.errors import ServerError
from redknot_sglang.measure import launch as launching
from redknot_sglang.measure.launch import launch

HEALTHY = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
port = next(a.split("=")[1] for a in sys.argv if a.startswith("--port="))
HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + HEALTHY


@pytest.fixture
def fake_sglang(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH in which `sglang.launch_server` runs what the test writes into it."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    return tmp_path


def fake(folder: Path, code: str) -> dict[str, str]:
    (folder / "sglang" / "launch_server.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.parametrize("code", [HEALTHY, STUBBORN])
def test_nothing_is_left_running(fake_sglang: Path, tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "STOP_TIMEOUT", 0.5)
    with launch(["--x"], tmp_path / "log", env=fake(fake_sglang, code)) as server:
        child = int(server.log_text().split()[1])
        assert is_running(child) and is_running(server.process.pid)
    assert server.process.poll() is not None
    assert wait_until_gone(child)


def test_another_program_gets_the_same_flags(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; print(sys.argv[1:], flush=True)" + HEALTHY)
    with launch(["--x"], tmp_path / "log", program=[str(program)]) as server:
        port = server.url.rpartition(":")[2]
        assert server.log_text().startswith(f"['--x', '--host=127.0.0.1', '--port={port}']")


def test_nothing_is_left_running_after_an_error_of_the_user(fake_sglang: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        launch([], tmp_path / "log", env=fake(fake_sglang, HEALTHY)) as server,
    ):
        child = int(server.log_text().split()[1])
        raise ZeroDivisionError
    assert wait_until_gone(child)


def test_an_early_death_shows_the_exit_code_and_the_last_lines(fake_sglang: Path, tmp_path: Path) -> None:
    code = "import sys; print('\\n'.join(f'line {i}' for i in range(99))); sys.exit('redknot: wrong map')"
    with (
        pytest.raises(ServerError, match=r"(?s)exit code 1;.*line 98\nredknot: wrong map") as caught,
        launch([], tmp_path / "log", env=fake(fake_sglang, code)),
    ):
        pass
    assert "line 10\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(fake_sglang: Path, tmp_path: Path) -> None:
    waits: list[float] = []
    with (
        pytest.raises(ServerError, match="did not answer within 1 s; .*is empty"),
        launch(
            [],
            tmp_path / "log",
            env=fake(fake_sglang, "import time; time.sleep(600)"),
            timeout=1,
            on_wait=waits.append,
        ),
    ):
        pass
    assert waits and max(waits) < 1


def test_nobody_is_given_the_port_of_a_server_that_starts(fake_sglang: Path, tmp_path: Path) -> None:
    used: list[str] = []

    def bind(seconds: float) -> None:
        if port := (tmp_path / "log").read_text():
            used.append(port)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", int(port)))

    code = "import sys, time; print(sys.argv[-1][7:], flush=True); time.sleep(600)"
    with pytest.raises(ServerError), launch([], tmp_path / "log", env=fake(fake_sglang, code), timeout=2, on_wait=bind):
        pass
    assert used


def test_the_flags_reach_the_server_and_the_environment_is_added_to(fake_sglang: Path, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:-2], os.environ['MARK'], 'PATH' in os.environ)"
    with (
        pytest.raises(ServerError, match=r"\['--a', '--b=1'\] here True"),
        launch(["--a", "--b=1"], tmp_path / "log", env={**fake(fake_sglang, code), "MARK": "here"}),
    ):
        pass


def test_sigterm_to_the_parent_ends_its_server_where_it_is_made_an_exit(fake_sglang: Path, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; from pathlib import Path; from redknot_sglang.measure.launch import launch\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"with launch([], Path({str(tmp_path / 'log')!r}), env={fake(fake_sglang, HEALTHY)!r}):\n"
        "    print('up', flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "up\n"
    child = int((tmp_path / "log").read_text().split()[1])
    os.kill(parent.pid, signal.SIGTERM)
    assert parent.wait(20) == 143
    parent.stdout.close()
    assert wait_until_gone(child)
