# SPDX-License-Identifier: Apache-2.0
"""Stands for a server that another process has forked: `python tests/serving/client.py SOCKET VARIABLES FLAGS`.

It has `tests/serving/forking.py --serve SOCKET` fork a server that writes to this process's output, and ends with the server's exit
code. VARIABLES: names, with commas between them, of those of this process's variables that the server gets. On SIGTERM it has the server ended first; if it is killed, the server ends as well.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys


def main(path: str, names: list[str], arguments: list[str]) -> int:
    """The exit code of a server with these flags, and the variables of these names, once it has ended."""
    with socket.socket(socket.AF_UNIX) as forker:
        forker.connect(path)
        variables = {name: os.environ[name] for name in names}
        request = json.dumps({"arguments": arguments, "variables": variables}).encode()
        socket.send_fds(forker, [struct.pack("I", len(request)) + request], [1, 2])
        signal.signal(signal.SIGTERM, lambda *_: forker.shutdown(socket.SHUT_WR))
        answer = forker.recv(4)
    # A process that a signal has ended has no code of its own.
    return abs(struct.unpack("i", answer)[0]) if answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], list(filter(None, sys.argv[2].split(","))), sys.argv[3:]))
