# SPDX-License-Identifier: Apache-2.0
"""Server arguments bring the plugins to the tokenizer workers, which get nothing else of ours."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from sglang.srt.server_args import ServerArgs

from redknot_sglang.hooks.v0_5_17 import workers
from tests.versions import before_adapted

pytestmark = before_adapted  # refused with SGLang 0.5.23

ASK = """
import pickle, sys
from redknot_sglang.cpu import install_kernel_stand_in

install_kernel_stand_in()
from sglang.srt.entrypoints import http_server
from sglang.srt.managers.multi_tokenizer_mixin import get_tokenizer_worker_class

with open(sys.argv[1], "rb") as file:
    server_args = pickle.load(file)
found = get_tokenizer_worker_class(server_args)
print("CLASS", found.__name__, "/redknot/status" in [getattr(route, "path", "") for route in http_server.app.routes])
print("SEAM", found.generate_request.__wrapped__ is not None)
"""


def made(count: int) -> ServerArgs:
    """Arguments without the checks of a start."""
    found = ServerArgs.__new__(ServerArgs)
    vars(found)["tokenizer_worker_num"] = count
    workers.bring_plugins(found)
    return found


def test_a_server_with_one_tokenizer_is_left_alone() -> None:
    assert vars(made(1)) == {"tokenizer_worker_num": 1}


def test_a_worker_that_asks_for_its_class_gets_plugins_and_routes(tmp_path: Path) -> None:
    """As SGLang does it: in a process that has loaded no plugin, from a pickle."""
    path = tmp_path / "arguments"
    path.write_bytes(pickle.dumps(made(2)))
    ran = subprocess.run([sys.executable, "-c", ASK, str(path)], capture_output=True, text=True, timeout=300)
    assert "CLASS TokenizerWorker True" in ran.stdout and "SEAM True" in ran.stdout, ran.stdout + ran.stderr
