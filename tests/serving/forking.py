# SPDX-License-Identifier: Apache-2.0
"""`sglang.launch_server` whose scheduler and detokenizer are forked: `python tests/serving/forking.py FLAGS`.

SGLang starts them as new interpreters ("spawn"), each of which imports for as long as the first did: two thirds of what a
start takes on a CPU. A forked process has the modules already. Tests of what a start does (configuration file,
a map that was just certified, the project's own commands) do without this file.
"""

from __future__ import annotations

import gc
import multiprocessing
import runpy
import sys

_choose = multiprocessing.set_start_method


def _fork(method: str | None, force: bool = False) -> None:
    """In place of `multiprocessing.set_start_method`: what would be spawned is forked."""
    gc.freeze()
    gc.enable()
    _choose("fork" if method == "spawn" else method, force=force)


if __name__ == "__main__":
    # Modules stay: a fifth of the time that imports take would go into looking for garbage among them.
    gc.disable()
    # As with `python -m`: this folder is nothing to import from.
    sys.path[0] = ""
    multiprocessing.set_start_method = _fork
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
