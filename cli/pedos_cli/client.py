"""A blocking client of the local socket, which has what a command needs and imports quickly.

A command that lists devices should finish before its user notices a delay, and importing takes
longer than all its work. So this module avoids trio, `typing`, `enum` and `dataclasses`, and uses
`_socket`, the C half of `socket`: the other half imports enum and selectors.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket
from stat import S_ISSOCK
from struct import pack
from time import monotonic

from pedos_protocol.connection import VERSIONS, Connection
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.events import (
    REFUSED,
    Answer,
    Closed,
    ErrorAnswer,
    Hello,
    NeedData,
    Notice,
    Request,
    refusal,
)
from pedos_protocol.sockets import DEFAULT_SOCKET, DESKTOP_SOCKET

TYPE_CHECKING = False  # like typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from pedos_protocol.events import Event

#: Bytes of path in a sockaddr_un, less the final NUL (unix(7)).
SUN_PATH_MAX = 107

#: Seconds beyond a call's time-out in which the service may answer that the time is up.
GRACE = 1.0

#: Seconds after which a command says what it waits for: before that, a person notices no delay.
LONG = 1.0

#: The notice in which the service says what an operation waits for.
STEP = "operation.step"

#: Seconds in which the service accepts a new connection; a working service accepts it at once.
CONNECT_PATIENCE = 5

#: Bytes to receive at once: the largest frame.
RECEIVE_SIZE = 65540


class Unreachable(Exception):  # noqa: N818 - the name of a state of affairs, as KeyboardInterrupt
    """No service answers at `path`; `why` is half a sentence. `lost`: a connection existed
    before."""

    def __init__(self, path: str, why: str, *, lost: bool = False) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why
        self.lost = lost


class Client:
    """A connection to the service. Made by `connect`."""

    def __init__(self, sock: socket, path: str, program: str) -> None:
        self.path = path
        self.closed = False
        #: Whether answers are only for standard output: a wait then ends with BrokenPipeError once
        #: nothing reads that any more.
        self.only_for_output = False
        self._socket = sock
        self._connection = Connection()
        self._last_id = 0
        # Not sent yet: hello and the first request leave together.
        self._out = self._connection.send(Hello(VERSIONS, program))

    def call(
        self,
        method: str,
        params: dict[str, Any],
        timeout: float,
        waiting: Callable[[dict[str, Any] | None, bool], None] | None = None,
    ) -> dict[str, Any]:
        """Calls `method` and returns its result.

        `timeout` is in seconds, at most a day. `waiting` is called at once with each step that the
        service reports, and, if there is no answer after LONG seconds, with the last step, or None
        if the service reported none; its second argument says whether the wait is long.

        CallError if the answer is an error, or `timeout` if no answer arrives in time; Unreachable
        if the service goes away first; RemoteProtocolError if the service breaks the protocol;
        LocalProtocolError if `params` cannot be sent.
        """
        self._last_id += 1
        call_id = self._last_id
        request = Request(call_id, method, params, max(1, int(timeout * 1000)))
        self._out += self._connection.send(request)
        now = monotonic()
        deadline = now + timeout + GRACE
        silent_until = deadline if waiting is None else min(deadline, now + LONG)
        step: dict[str, Any] | None = None
        if not self._send(deadline):
            self.close()
            raise _late(method, timeout)
        while True:
            event = self._next_event(silent_until)
            if event is None:
                if silent_until == deadline or waiting is None:
                    raise _late(method, timeout)
                silent_until = deadline
                waiting(step, True)
            elif isinstance(event, Notice) and event.method == STEP:
                step = event.params
                if waiting is not None:
                    waiting(step, silent_until == deadline)
            elif isinstance(event, Answer) and event.id == call_id:
                return event.result
            elif isinstance(event, ErrorAnswer) and event.id == call_id:
                raise CallError(event.code, event.message, event.data)

    def _send(self, deadline: float | None) -> bool:
        """Sends what is pending; False if the deadline passes first. Part of a frame may have been
        sent then, so this connection cannot be used for anything else."""
        try:
            self._wait_until(deadline)
            self._socket.sendall(self._out)
            self._out = b""
        except TimeoutError:
            return False
        except OSError:
            # The service hung up. Reads first what it sent before, which may say why.
            self._out = b""
        return True

    def _next_event(self, deadline: float | None) -> Event | None:
        """The next event; None if the deadline passes first."""
        if self._out and not self._send(deadline):
            self.close()
            return None
        try:
            while True:
                event = self._connection.next_event()
                if isinstance(event, Closed):
                    raise self._gone("the service has closed the connection")
                if isinstance(event, Notice) and event.method == REFUSED:
                    raise refusal(event.params)
                if isinstance(event, Request):
                    raise RemoteProtocolError("the service made a request of a command")
                if not isinstance(event, NeedData):
                    return event
                self._wait_until(deadline)
                if self.only_for_output:
                    self._wait_while_read(deadline)
                self._connection.receive_data(self._socket.recv(RECEIVE_SIZE))
        except TimeoutError:
            return None
        except BrokenPipeError:  # of standard output: nothing is sent here
            raise
        except OSError as error:
            raise self._gone(f"the connection broke ({error.strerror})") from error

    def _gone(self, why: str) -> Unreachable:
        # The service says hello before it reads: without a hello it did nothing of the request.
        return Unreachable(self.path, why, lost=self._connection.their_hello is not None)

    def _wait_until(self, deadline: float | None) -> None:
        if deadline is not None:
            # 0 would mean not to block at all.
            self._socket.settimeout(max(0.001, deadline - monotonic()))
        else:
            self._socket.settimeout(None)

    def _wait_while_read(self, deadline: float | None) -> None:
        from pedos_cli.output import wait_while_read  # noqa: PLC0415  (only a watch needs it)

        seconds = None if deadline is None else max(0.001, deadline - monotonic())
        if not wait_while_read(seconds, self._socket.fileno()):
            raise TimeoutError

    def close(self) -> None:
        """Hangs up; the service may then give up what it still does for this client."""
        self.closed = True
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _late(method: str, timeout: float) -> CallError:
    from pedos_protocol.words import unanswered  # noqa: PLC0415  (only who waited needs it)

    return CallError("timeout", unanswered(method, timeout))


def _connect(sock: socket, path: str) -> None:
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        sock.connect(path)
        return
    # The parent folder has a short name while it is open.
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


def _is_socket(path: str) -> bool:
    try:
        return S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # it is gone now: as far as is known, it was a socket
        return True


class Places:
    """Where to try to connect to the service: `path`, or where PEDOS_SOCKET says, or at the usual
    places: root's own socket, and for a user who may not open that one, that of dom0's desktop.

    `place` is the one to try. Once there is no other, `place` and `error` are what is to be told.
    """

    def __init__(self, path: str | None = None) -> None:
        named = path if path is not None else os.environ.get("PEDOS_SOCKET")
        self._others = [] if named else [DESKTOP_SOCKET]
        self.place = named or DEFAULT_SOCKET
        self.error: OSError | None = None

    def is_another_after(self, error: OSError) -> bool:
        """Whether there is another place to try, after this came of the last attempt."""
        if self._others and isinstance(error, PermissionError):
            self.error, self.place = error, self._others.pop()
            return True
        if self.error is not None and isinstance(error, FileNotFoundError):
            # A service without such a socket, in a VM or of an older version: what is wrong is that
            # the other one is not this user's.
            self.place = DEFAULT_SOCKET
        else:
            self.error = error
        return False


def open_socket(path: str | None = None) -> tuple[socket, str]:
    """A socket connected to the service at one of the `Places`, and that place.

    Unreachable if there is none. For programs that speak the protocol themselves; `connect` is for
    calls.
    """
    places = Places(path)
    while True:
        try:
            return _open_at(places.place), places.place
        except OSError as error:
            if not places.is_another_after(error):
                break
    assert places.error is not None
    raise Unreachable(places.place, _why_none(places.place, places.error)) from places.error


def _open_at(path: str) -> socket:
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        # For a listener that never accepts: connect(2) on a Unix socket keeps to this time-out.
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, pack("ll", CONNECT_PATIENCE, 0))
        _connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def _why_none(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "no program listens there" if _is_socket(path) else "it is no socket"
    if isinstance(error, BlockingIOError):
        return f"the service took no new connection within {CONNECT_PATIENCE} s"
    # For a name that is too long even alone, socket has only its message.
    return (error.strerror or str(error)).lower()


def connect(path: str | None = None, *, program: str = "pedos-cli") -> Client:
    """A client of the service at `path`, or where PEDOS_SOCKET says, or at the usual place.

    Unreachable if there is none. That the service answers is known only after the first call.
    """
    return Client(*open_socket(path), program)
