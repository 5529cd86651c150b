"""One connection to a message bus: authentication, messages, and what answers which.

jeepney authenticates, reads and writes messages; here are the stream, the tasks and the clock. (Its
own trio shell leaves a socket open when a connection is cancelled, raises KeyError where the bus
goes away during a call, and drops what does not fit a queue.)

What is on a bus comes from any program of the session. Bodies are tuples of whatever types the
sender chose until `taken` has checked them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, Final

import trio
from jeepney import HeaderFields, MessageFlag, MessageType
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.low_level import Message, Parser
from pedos_protocol.names import printable_text

logger = logging.getLogger(__name__)

# Seconds for the bus to take a connection, and for an answer to a call. A program that has to be
# started first may take some; nothing on the screen waits for either.
CONNECT_S: Final = 5.0
CALL_S: Final = 10.0
# Bytes of one message to this program. The longest expected is a list of capabilities.
MESSAGE_MAX: Final = 64 * 1024
# Messages that wait to be written: the bus reads all the time, or it hangs.
OUTGOING_MAX: Final = 64
RECEIVE_SIZE: Final = 4096
# Characters of another program's error that are shown or logged.
TEXT_MAX = 200

# The header's fields that are numbers; all others are texts.
_NUMBERS = (HeaderFields.reply_serial, HeaderFields.unix_fds)

Body = tuple[Any, ...]


class BusError(Exception):
    """A call did not succeed. `name` is that of the error that was answered; "" if there was no
    answer, for lack of a bus or of time."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


def taken(untrusted_body: Body, *kinds: type) -> Body:
    """The first values of a message's body, one of each of `kinds`; BusError if it has others."""
    values = untrusted_body[: len(kinds)]
    if tuple(map(type, values)) != kinds:
        wanted = ", ".join(kind.__name__ for kind in kinds)
        raise BusError(f"a message from the bus does not carry {wanted}")
    return values


def socket_path(address: str) -> str | None:
    """The file that is the socket of the bus; None if it is none."""
    try:
        path = get_bus(address)
    except (ValueError, RuntimeError):  # an address of another kind, which jeepney cannot use
        return None
    return path if isinstance(path, str) and path.startswith("/") else None


async def opened(address: str) -> trio.SocketStream:
    """A stream that is authenticated; BusError."""
    stream: trio.SocketStream | None = None
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_unix_socket(get_bus(address))
            authenticator = Authenticator()
            for data in authenticator:
                if data:
                    await stream.send_all(data)
                received = await stream.receive_some(RECEIVE_SIZE)
                if not received:
                    raise trio.BrokenResourceError("it closed the connection")
                authenticator.feed(received)
            await stream.send_all(BEGIN)
            return stream
    # jeepney raises a few of its own for addresses of other kinds.
    except (OSError, ValueError, RuntimeError, trio.TooSlowError) as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        why = str(error) or type(error).__name__
        raise BusError(f"cannot connect: {printable_text(why, TEXT_MAX)}") from error
    except BaseException:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        raise


class Session:
    """One connection, from its authentication to its end."""

    def __init__(
        self,
        stream: trio.SocketStream,
        take_signal: Callable[[Session, Message], None],
        take_call: Callable[[Message], Message],
    ) -> None:
        self.failure = ""
        self.owner_changes = 0
        self._stream = stream
        self._take_signal = take_signal
        self._take_call = take_call
        self._serials = itertools.count(1)
        self._waiting: dict[int, _Reply] = {}
        self._outgoing, self._to_write = trio.open_memory_channel[bytes](OUTGOING_MAX)
        self._nursery: trio.Nursery | None = None

    def open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        nursery.start_soon(self._read)
        nursery.start_soon(self._write)

    def start_soon(self, work: Callable[..., Any], *arguments: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(work, *arguments)

    def fail(self, why: str) -> None:
        """Ends the connection."""
        self.failure = self.failure or why
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Closes the stream, and tells all who wait for an answer that none comes."""
        self._stream.socket.close()
        self._outgoing.close()
        self._to_write.close()
        for reply in self._waiting.values():
            reply.came.set()

    async def call(self, message: Message, timeout_s: float) -> Body:
        serial = next(self._serials)
        reply = self._waiting[serial] = _Reply()
        try:
            with trio.fail_after(timeout_s):
                await self._outgoing.send(message.serialise(serial))
                await reply.came.wait()
        except trio.TooSlowError:
            raise BusError(f"no answer came within {timeout_s:g} s") from None
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise BusError(self.failure or "the connection has ended") from None
        finally:
            del self._waiting[serial]
        if reply.message is None:
            raise BusError(self.failure or "the connection has ended")
        if reply.message.header.message_type is MessageType.error:
            name = str(reply.message.header.fields.get(HeaderFields.error_name))
            said = printable_text(" ".join(map(str, reply.message.body[:1])), TEXT_MAX)
            raise BusError(said or name, name)
        body: Body = reply.message.body
        return body

    async def _write(self) -> None:
        try:
            async for data in self._to_write:
                await self._stream.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fail(f"cannot write: {error}")

    async def _read(self) -> None:
        parser = Parser()
        try:
            while data := await self._stream.receive_some(RECEIVE_SIZE):
                parser.add_data(data)
                while (message := next_message(parser)) is not None:
                    if (answer := self.take(message)) is not None:
                        await self._outgoing.send(answer.serialise(next(self._serials)))
            self.fail("it has closed the connection")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fail(f"cannot read: {error}")
        except BusError as error:
            self.fail(str(error))

    def take(self, message: Message) -> Message | None:
        """Acts on what has come; the answer to it, if there is one."""
        kind = message.header.message_type
        if kind in (MessageType.method_return, MessageType.error):
            serial = message.header.fields.get(HeaderFields.reply_serial)
            if (reply := self._waiting.get(serial)) is not None:
                reply.message = message
                reply.came.set()
        elif kind is MessageType.signal:
            try:
                self._take_signal(self, message)
            except BusError as error:
                logger.debug("a signal is ignored: %s", error)  # anybody can send them without end
        elif kind is MessageType.method_call:
            answer = self._take_call(message)
            if not message.header.flags & MessageFlag.no_reply_expected:
                return answer
        return None


def next_message(parser: Parser) -> Message | None:
    """The next whole message; BusError if it is malformed or too long. Its header's fields are the
    texts and numbers that they should be."""
    try:
        message = parser.get_next_message()
        missing = parser.bytes_desired() if message is None else 0
        if message is not None:
            for field, value in message.header.fields.items():
                taken((value,), int if field in _NUMBERS else str)
    # What jeepney raises for a malformed message is nowhere written down.
    except Exception as error:
        raise BusError(f"it sent a malformed message: {type(error).__name__}") from error
    if missing > MESSAGE_MAX:
        raise BusError(f"it sent a message of more than {MESSAGE_MAX} bytes")
    return message


class _Reply:
    """The answer that a call waits for; None if the connection ends first."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.message: Message | None = None
