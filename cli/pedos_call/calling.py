"""`call`, which does with a service of another VM what subprocess.run does with a program."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import stat
from time import monotonic
from typing import Final, NamedTuple, Protocol, TypeAlias

from pedos_protocol.call_link import VERSION, Ended, Started
from pedos_protocol.call_link import Call as CallMessage

from pedos_call.connection import Connection, UnreachableError, keep, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Bytes of output and of error output that are kept in memory, unless the caller says otherwise: a
#: service of another VM decides how much it writes.
OUTPUT_MAX: Final = 64 * 1024 * 1024
#: Bytes to read or write at once: a socket's buffer holds some 200 KiB.
CHUNK: Final = 128 * 1024
#: Milliseconds to wait at once, however long a call may take: poll(2) counts them in an int.
POLL_MAX: Final = 3_600_000
#: What is done with a stream: its bytes are kept and returned.
PIPE: Final = -1


class HasFileno(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


Stream: TypeAlias = int | HasFileno


class CompletedCall(NamedTuple):
    """How a call has ended.

    `kind` is "exited" or "signalled" if the service has ended by itself, with `status`; otherwise
    why there is no status of its own, which `text` says in words ("problem", "refused",
    "not_found", "aborted", "lost"), and `status` is 0. `exit_status` is that of qvm-call. What was
    not captured is b"".
    """

    kind: str
    status: int
    exit_status: int
    stdout: bytes
    stderr: bytes
    text: str
    hint: str
    request: str


class CallFailedError(Exception):
    """The exit status of a call with `check` is not 0; `completed` has all of it."""

    def __init__(self, completed: CompletedCall) -> None:
        said = completed.text or f"the service exited with status {completed.status}"
        super().__init__(said)
        self.completed = completed


class OutputTooLongError(Exception):
    """A service has written more than may be kept; the call was aborted."""


def call(
    target: str,
    service: str,
    *,
    input: ReadableBuffer = b"",  # noqa: A002 - as subprocess.run names it
    stdin: Stream | None = None,
    stdout: Stream = PIPE,
    stderr: Stream = PIPE,
    user: str = "",
    timeout: float | None = None,
    check: bool = False,
    output_max: int = OUTPUT_MAX,
    path: str | None = None,
) -> CompletedCall:
    """Call SERVICE[+ARGUMENT] of a VM, and wait for its end.

    The service reads the bytes of `input`, or from `stdin`, a pipe or stream socket. Its output is
    returned, or goes to `stdout` and `stderr`, which are pipes or stream sockets too; for files and
    terminals run qvm-call. An empty target is @default. `timeout` is in seconds; a call that takes
    longer is aborted. `path` is the agent's call socket, where it is not the usual one.

    UnreachableError without an agent, TimeoutError, OutputTooLongError, ValueError for a stream or
    name that cannot be, TypeError for an input that is no contiguous bytes-like object;
    CallFailedError if `check` and the exit status is not 0. Everything else that can go wrong is a
    result.
    """
    written = memoryview(input).cast("B")  # of items of several bytes it counts bytes, too
    if written and stdin is not None:
        raise ValueError("a call has either input or stdin")
    if timeout is not None and math.isnan(timeout):
        raise ValueError("a timeout is a number of seconds")
    name, _, argument = service.partition("+")
    streams = _Streams(written, stdin, stdout, stderr, output_max)
    try:
        message = CallMessage(
            VERSION, streams.are_ours, target or "@default", name, f"+{argument}", user
        )
        deadline = None if timeout is None else monotonic() + timeout
        ended = _carry(message, streams, deadline, path)
    finally:
        streams.close()
    completed = CompletedCall(
        ended.kind,
        ended.status if ended.kind in ("exited", "signalled") else 0,
        ended.exit_status,
        bytes(streams.stdout),
        bytes(streams.stderr),
        ended.text,
        ended.hint,
        ended.request,
    )
    if check and completed.exit_status:
        raise CallFailedError(completed)
    return completed


def _carry(
    message: CallMessage, streams: _Streams, deadline: float | None, path: str | None
) -> Ended:
    connection, is_new = take(path)
    try:
        try:
            connection.ask(message, streams.for_agent)
        except UnreachableError:
            if is_new:
                raise
            # The agent has closed the kept one, which was idle: nothing of the call was done.
            connection.close()
            connection = Connection(path)
            connection.ask(message, streams.for_agent)
        streams.handed_over()
        ended = _wait(connection, streams, deadline)
    except BaseException:
        connection.close()
        raise
    keep(path, connection)
    return ended


def _wait(connection: Connection, streams: _Streams, deadline: float | None) -> Ended:
    """Until the agent has said how it ended, and all output is read."""
    ended: Ended | None = None
    poll = select.poll()
    poll.register(connection.fileno, select.POLLIN)
    streams.register(poll)
    while ended is None or streams.are_open:
        left = None if deadline is None else min((deadline - monotonic()) * 1000, POLL_MAX)
        if left is not None and left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the call took too long, and was aborted")
        for descriptor, _ in poll.poll(left):
            if descriptor != connection.fileno:
                streams.go_on(descriptor, poll)
                continue
            said = connection.hear()
            if not isinstance(said, Started):
                ended = said
                poll.unregister(descriptor)
                streams.stop_writing(poll)
    return ended


class _Streams:
    """The three streams of a call; those that are captured or written are ours."""

    def __init__(
        self,
        written: memoryview,
        stdin: Stream | None,
        stdout: Stream,
        stderr: Stream,
        output_max: int,
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.for_agent: list[int] = []
        self._left = written
        self._output_max = output_max
        self._ours: list[int] = []  # for the agent, closed as soon as it has them
        self._socket: socket.socket | None = None
        self._errors = -1
        self._is_writing = self._is_reading = False
        self._wanted = 0  # of the socket, as the poll object knows it
        #: Whether input and output are the two directions of one socket, which nobody else has.
        self.are_ours = stdin is None and stdout == PIPE
        try:
            self._open(stdin, stdout, stderr)
        except BaseException:
            self.close()
            raise

    def _open(self, stdin: Stream | None, stdout: Stream, stderr: Stream) -> None:
        theirs = -1
        if stdin is None or stdout == PIPE:
            self._socket, other = socket.socketpair()
            self._socket.setblocking(False)
            theirs = other.detach()
            self._ours.append(theirs)
        self._is_writing, self._is_reading = stdin is None, stdout == PIPE
        self.for_agent.append(theirs if stdin is None else _handed("stdin", stdin))
        self.for_agent.append(theirs if stdout == PIPE else _handed("stdout", stdout))
        if stderr == PIPE:
            self._errors, end = os.pipe()
            self._ours.append(end)
            self.for_agent.append(end)
        else:
            self.for_agent.append(_handed("stderr", stderr))

    @property
    def are_open(self) -> bool:
        """Whether output may still come."""
        return self._is_reading or self._errors >= 0

    def handed_over(self) -> None:
        """The agent has its descriptors, and the streams end when it closes them."""
        for each in self._ours:
            os.close(each)
        self._ours.clear()
        if self._is_writing:
            self._write()

    def register(self, poll: select.poll) -> None:
        """Have it tell what is ready."""
        if self._errors >= 0:
            poll.register(self._errors, select.POLLIN)
        self._register_socket(poll)

    def _register_socket(self, poll: select.poll) -> None:
        wanted = select.POLLIN * self._is_reading | select.POLLOUT * self._is_writing
        if self._socket is None or wanted == self._wanted:
            return
        if wanted:
            poll.register(self._socket, wanted)  # or changes what is wanted
        else:
            poll.unregister(self._socket)
        self._wanted = wanted

    def go_on(self, descriptor: int, poll: select.poll) -> None:
        """What this descriptor is ready for. OutputTooLongError."""
        if descriptor == self._errors:
            if not self._keep(self.stderr, os.read(descriptor, CHUNK)):
                poll.unregister(descriptor)
                os.close(self._errors)
                self._errors = -1
            return
        if self._is_reading:
            self._read()
        if self._is_writing:
            self._write()
        self._register_socket(poll)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            self._is_reading = self._keep(self.stdout, self._socket.recv(CHUNK))
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self._is_reading = False

    def _write(self) -> None:
        """As much of the input as goes now; its end is said when all has gone."""
        assert self._socket is not None
        try:
            while self._left:
                self._left = self._left[self._socket.send(self._left[:CHUNK]) :]
            self._socket.shutdown(socket.SHUT_WR)
            self._is_writing = False
        except BlockingIOError:
            pass
        except OSError:  # the service reads no more
            self._is_writing = False

    def stop_writing(self, poll: select.poll) -> None:
        """The call is over."""
        self._is_writing = False
        self._register_socket(poll)

    def _keep(self, kept: bytearray, more: bytes) -> bool:
        """Whether it goes on."""
        kept += more
        if len(kept) > self._output_max:
            raise OutputTooLongError(f"the service has written more than {self._output_max} bytes")
        return bool(more)

    def close(self) -> None:
        """Close what is ours."""
        for each in (*self._ours, self._errors):
            if each >= 0:
                os.close(each)
        self._ours.clear()
        self._errors = -1
        if self._socket is not None:
            self._socket.close()


def _handed(name: str, stream: Stream) -> int:
    """The descriptor of a stream that the agent gets as it is. ValueError if it cannot."""
    descriptor = stream if isinstance(stream, int) else stream.fileno()
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        return descriptor
    raise ValueError(f"{name} is neither a pipe nor a socket: run qvm-call for files and terminals")
