"""Runs the bench's programs in forks of a process that has them imported: see warm.c.

To start one anew takes three seconds of a domain under emulation, nearly all of it imports.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path

LISTENING = 3  # sd_listen_fds(3)
MESSAGE_MAX = 65536


def run(connection: socket.socket) -> int:
    """Becomes what the other end asked for, and returns its exit status."""
    message, streams, _, _ = socket.recv_fds(connection, MESSAGE_MAX, 3)
    # Whoever asked is gone: so is this, at once, by the signal that nobody handles.
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:
        return 1  # gone before that
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    program, *arguments = os.fsdecode(message).rstrip("\0").split("\0")
    sys.argv = [program, *arguments]
    try:
        name = "qvm" if program.startswith("qvm-") else program.removeprefix("bench-")
        importlib.import_module(name).main()
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    listening = socket.socket(fileno=LISTENING)
    for program in Path(__file__).parent.glob("[!_]*.py"):
        with contextlib.suppress(ImportError):  # a bench may be without the project's packages
            importlib.import_module(program.stem)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = run(connection)
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([status]))
        os._exit(status)


if __name__ == "__main__":
    main()
