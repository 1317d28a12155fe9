# SPDX-License-Identifier: Apache-2.0
"""Stands for a server that another process has forked: `python tests/serving/client.py SOCKET FLAGS`.

It has `tests/serving/forking.py --serve SOCKET` fork a server that writes to this process's output, and ends with the server's exit
code. On SIGTERM it has the server ended first; if it is killed, the server ends as well.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys


def main(path: str, arguments: list[str]) -> int:
    """The exit code of a server with these flags, once it has ended."""
    with socket.socket(socket.AF_UNIX) as forker:
        forker.connect(path)
        request = json.dumps({"arguments": arguments}).encode()
        socket.send_fds(forker, [struct.pack("I", len(request)) + request], [1, 2])
        signal.signal(signal.SIGTERM, lambda *_: forker.shutdown(socket.SHUT_WR))
        answer = forker.recv(4)
    # A process that a signal has ended has no code of its own.
    return abs(struct.unpack("i", answer)[0]) if answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
