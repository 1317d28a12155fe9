# SPDX-License-Identifier: Apache-2.0
"""How a scheduler process says in one line that it cannot serve with these flags, and ends the server's start.

Most flags are refused before any process is started. What depends on the memory of the device is known only in the
scheduler process, whose errors SGLang would print as a traceback.
"""

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
    """Inside the context a RedKnotError is printed as one line, and this process ends with exit code REFUSED.

    data_parallel: whether this process's parent is SGLang's data-parallel controller. That waits for its schedulers without
        looking whether they live, and loads no plugins, so it is ended from here by a signal.
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
    """Whether a child of SGLang's launcher, a scheduler or a data-parallel controller, was ended by `one_line`.

    exit_code: as multiprocessing gives it: negative for a signal, None for a process that still runs.
    """
    return exit_code in (REFUSED, -_SIGNAL)
