# SPDX-License-Identifier: Apache-2.0
"""`sglang.launch_server` in processes that are forked, not started, from one that has all modules: for quick tests.

    python tests/serving/forking.py --serve SOCKET    the process to fork from: imports once, then forks a server for each client
    python tests/serving/forking.py FLAGS             one server, whose scheduler and detokenizer are forked

On a CPU imports are most of what a start takes, and SGLang starts its scheduler and its detokenizer as new interpreters
("spawn") that import everything again. Servers of the first form get the variables that their client names. Some are read when
SGLang is imported, which is over by then: a server with other ones than the process that it is forked from has is refused.

A client of the first form is `tests/serving/client.py`. Tests of what a start does (configuration file, a map that was just certified, the
project's own commands) do without this file.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
from typing import Any

_choose = multiprocessing.set_start_method
# Variables that were asked for while modules were imported, whether they were there or not.
_read: set[str] = set()


def _fork(method: str | None, force: bool = False) -> None:
    """In place of `multiprocessing.set_start_method`: what would be spawned is forked."""
    gc.freeze()
    gc.enable()
    _choose("fork" if method == "spawn" else method, force=force)


def preload() -> None:
    """Import what a launcher imports, in its order: plugins are loaded between its arguments and its server."""
    variables = type(os.environ)
    get = variables.__getitem__

    def noted(self: os._Environ[str], name: str) -> str:
        _read.add(name)
        return get(self, name)

    variables.__getitem__ = noted  # type: ignore[method-assign]
    try:
        import sglang.srt.server_args  # noqa: F401
        from sglang.srt.plugins import load_plugins

        load_plugins()
        import sglang.srt.entrypoints.http_server
        import sglang.srt.models.registry  # noqa: F401
    finally:
        variables.__getitem__ = get  # type: ignore[method-assign]


def serve(path: str) -> list[str]:
    """Fork a server for each client of the socket at `path`, until standard input ends.

    Returns in the forked processes only, with the arguments of the server.
    """
    servers: dict[socket.socket, int] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == 0:
                    for pid in servers.values():
                        _kill(pid)
                    sys.exit()
                elif key.fileobj is listener:
                    client = listener.accept()[0]
                    request, files = _receive(client)
                    pid = os.fork()
                    if pid == 0:
                        for mine in (client, *servers):
                            mine.close()
                        return _become(request, files)
                    for file in files:
                        os.close(file)
                    servers[client] = pid
                    selector.register(client, selectors.EVENT_READ)
                    # Readable once the process has ended.
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, client)
                elif key.data is None:
                    # The client wants the end of its server, or has ended itself.
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    _kill(servers[key.fileobj])
                else:
                    _ended(selector, servers, key)


def _ended(selector: selectors.BaseSelector, servers: dict[socket.socket, int], key: selectors.SelectorKey) -> None:
    """A server has ended: what is left of its processes goes, and its client gets the exit code."""
    client, pid = key.data, servers.pop(key.data)
    selector.unregister(key.fileobj)
    os.close(key.fd)
    if client in selector.get_map():
        selector.unregister(client)
    _kill(pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        client.sendall(struct.pack("i", code))
    except OSError:
        pass
    client.close()


def _kill(pid: int) -> None:
    """End a server that has not been waited for, with all its processes, which are a group as soon as it leads a session."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A client's request, its length before it, and the files for standard output and error."""
    data, files, _, _ = socket.recv_fds(client, 1 << 16, 2)
    size = struct.unpack_from("I", data)[0]
    while len(data) < 4 + size:
        data += client.recv(1 << 16)
    return json.loads(data[4:]), files


def _become(request: dict[str, Any], files: list[int]) -> list[str]:
    """Make this process one that could have been started with the client's files and variables, as the leader of a session."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for file, at in zip((null, *files), (0, 1, 2), strict=True):
        os.dup2(file, at)
        os.close(file)
    variables: dict[str, str] = request["variables"]
    late = sorted(name for name, value in variables.items() if name in _read and os.environ.get(name) != value)
    if late:
        sys.exit(f"{', '.join(late)}: read when SGLang is imported; name it in EARLY of tests/serving/harness.py")
    os.environ.update(variables)
    arguments: list[str] = request["arguments"]
    return arguments


if __name__ == "__main__":
    # Modules stay: a fifth of the time that imports take would go into looking for garbage among them.
    gc.disable()
    # As with `python -m`: this folder is nothing to import from.
    sys.path[0] = ""
    if sys.argv[1] == "--serve":
        preload()
        gc.freeze()
        sys.argv[1:] = serve(sys.argv[2])
    multiprocessing.set_start_method = _fork
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
