# SPDX-License-Identifier: Apache-2.0
"""How a scheduler process says in one line that it cannot serve what it was asked to, and ends the start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from redknot_sglang.errors import RedKnotError

# Exit code of such a process, `EX_CONFIG` of sysexits.h, and the signal that ends a data-parallel controller for it.
REFUSED = 78
_SIGNAL = signal.SIGUSR2


@contextmanager
def one_line(data_parallel: bool) -> Iterator[None]:
    """Print a RedKnotError and end this process: how much memory there is shows only here, where it would be a traceback.

    data_parallel: whether this process's parent is a data-parallel controller. It waits for the schedulers without looking
    whether they live, and no plugin is loaded in it, so it is ended from here.
    """
    try:
        yield
    except RedKnotError as error:
        print(f"redknot: error: {error}", file=sys.stderr, flush=True)
        parent = multiprocessing.parent_process()
        # Another scheduler may have ended it already, and then this process has somebody else's parent.
        if data_parallel and parent is not None and parent.pid == os.getppid():
            os.kill(parent.pid, _SIGNAL)
        sys.exit(REFUSED)


def has_refused(exit_code: int | None) -> bool:
    """Whether a child of SGLang's launcher, a scheduler or a data-parallel controller, ended in `one_line`."""
    return exit_code in (REFUSED, -_SIGNAL)
