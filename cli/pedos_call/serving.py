"""`serve`: a service that is always there, at a Unix socket, and answers calls one by one.

The socket stands where services are (as /etc/pedos/services.d/SERVICE). For each call the VM's
keeper connects and says first which service is called by whom; then both directions of the
connection are the service's standard input and output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

# A request has a service, an argument, a VM and a target; all at their bounds are some 900 bytes.
HEADER_MAX: Final = 1024
# How many calls are answered at once; others wait to be accepted.
THREADS: Final = 8
# Seconds for a new connection to say which call it is for: a keeper does so as it connects.
HEADER_SECONDS: Final = 10.0
# What accept(2) says when calls have taken all descriptors or memory; and seconds until the next
# attempt, as no event says that there are some again.
SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
RETRY_SECONDS: Final = 0.1
BACKLOG: Final = 128  # dom0 lets so many calls of one target run


class Served(NamedTuple):
    """One call. `argument` is without its "+". `target` is what the caller had asked for, and
    `target_type` "name" or "keyword"; both are "" where the keeper does not say it."""

    service: str
    argument: str
    source: str
    target_type: str
    target: str
    stream: socket.socket


def serve(path: str, answer: Callable[[Served], object], *, threads: int = THREADS) -> None:
    """Listen at `path`, and have `answer` serve each call, until the program is ended.

    `answer` reads and writes `stream`, which is closed when it returns; what it raises, SystemExit
    too, is printed and ends that call alone. The caller's exit status is 0 in any case: what is
    written has to tell of a failure. It runs in one of so many threads, none of which is the one
    that has called `serve`: there Ctrl-C, and what handlers of signals raise, ends it. A stale
    socket of this user at `path` is replaced; OSError if a program listens there, or if anything
    else stands there.
    """
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            serve_on(listener, answer)
        except BaseException as error:
            failures.put(error)

    with listen(path) as listener:
        try:
            for _ in range(max(threads, 1)):
                threading.Thread(target=work, daemon=True).start()
            raise failures.get()
        finally:
            # A close alone would leave them in accept(2).
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def listen(path: str) -> socket.socket:
    """The socket of a service; OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            remove_stale(path)
            listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_stale(path: str) -> None:
    """Remove a socket of this user at which nobody listens any more. OSError for anything else:
    connect(2) refuses files of other kinds in the same way."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.ENOTSOCK, "there is something else than a socket", path)
    if found.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, "there is a socket of another user", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one whose backlog is full has a program, and would be waited for
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    os.unlink(path)


def serve_on(listener: socket.socket, answer: Callable[[Served], object]) -> None:
    """One thread's part of `serve`, on a socket that listens; OSError when it is closed."""
    is_short = False
    while True:
        try:
            stream, _ = listener.accept()
        except OSError as error:
            if error.errno not in SHORT:
                raise
            if not is_short:
                _complain(f"no call can be taken now: {error.strerror}")
            is_short = True
            time.sleep(RETRY_SECONDS)
            continue
        is_short = False
        with stream:
            try:
                served = receive_header(stream)
            except (OSError, ValueError) as error:
                _complain(f"no call: {error}")
                continue
            try:
                answer(served)
            except BaseException:  # sys.exit() would end this thread, and say nothing
                _complain(traceback.format_exc().rstrip())
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)


def _complain(text: str) -> None:
    """To standard error, which nobody may read: no caller's doing ends the service."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def receive_header(stream: socket.socket) -> Served:
    """Which call a new connection is for; takes nothing that comes after that. ValueError if it
    does not say it, OSError, and TimeoutError if it does not within HEADER_SECONDS. What is read
    of it afterwards has no bound."""
    header = b""
    until = time.monotonic() + HEADER_SECONDS
    while len(header) < HEADER_MAX:
        stream.settimeout(max(until - time.monotonic(), 0.001))
        seen = stream.recv(HEADER_MAX - len(header), socket.MSG_PEEK)
        end = seen.find(b"\0")
        if end >= 0:
            stream.settimeout(None)
            return parse_header(header + stream.recv(end + 1)[:-1], stream)
        if not seen:
            break
        header += stream.recv(len(seen))
    raise ValueError("a connection that does not say which call it is for")


def parse_header(header: bytes, stream: socket.socket) -> Served:
    """The call that a header names. ValueError."""
    words = header.decode("ascii").split(" ")
    if len(words) not in (2, 4):
        raise ValueError(f"a call is not named by {len(words)} words")
    service, _, argument = words[0].partition("+")
    target_type, target = words[2:] or ("", "")
    return Served(service, argument, words[1], target_type, target, stream)
