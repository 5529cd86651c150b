"""A message bus: one connection for all that the widget does there, or none.

jeepney authenticates, reads and writes messages; here are the stream, the tasks and the clock. (Its
own trio shell leaves a socket open when a connection is cancelled, raises KeyError where the bus
goes away during a call, and drops what does not fit a queue.) A bus that is missing, or goes away,
is no error: calls fail with `BusError`, and the connection is tried again.

What is on a bus comes from any program of the session. Bodies are tuples of whatever types the
sender chose until `taken` has checked them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import trio
from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    MessageFlag,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.bus_messages import message_bus
from jeepney.low_level import Message, Parser
from pedos_host.backoff import Backoff
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
_TEXT_MAX = 200

# The header's fields that are numbers; all others are texts.
_NUMBERS = (HeaderFields.reply_serial, HeaderFields.unix_fds)

DO_NOT_QUEUE: Final = 4  # a flag of RequestName
_IS_OURS = (1, 4)  # its answers: the name is this connection's now, or was already

Body = tuple[Any, ...]


class Place(NamedTuple):
    """An object of a program on the bus, and one of its interfaces."""

    name: str
    path: str
    interface: str


#: The widget itself: a second one asks the first to show its devices.
WIDGET: Final = Place("org.pedos.Widget", "/org/pedos/Widget", "org.pedos.Widget")


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


def session_address() -> str | None:
    """The address of the user's session bus; None if there is none."""
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return address
    path = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent", "bus")
    return f"unix:path={path}" if os.path.exists(path) else None


def system_address() -> str:
    """The address of the machine's bus."""
    default = "unix:path=/run/dbus/system_bus_socket"
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or default


class Bus:
    """The connection to the bus at `address`, if there is one.

    What is asked of it beforehand (names, served methods, signals) is asked again after each
    reconnect.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._session: _Session | None = None
        self._names: set[str] = set()
        self._methods: dict[tuple[str, str, str], Callable[[], None]] = {}
        self._signals: dict[tuple[str, str, str], list[Callable[[str, Body], None]]] = {}
        self._on_owner: dict[str, list[Callable[[str], None]]] = {}
        self._owners: dict[str, str] = {}  # of the names above, and "" for none

    @property
    def is_connected(self) -> bool:
        return self._session is not None

    # What the program wants

    def serve(self, path: str, interface: str, method: str, handler: Callable[[], None]) -> None:
        """Calls `handler` whenever a program calls that method, which takes and answers nothing."""
        self._methods[path, interface, method] = handler

    def on_signal(
        self, name: str, interface: str, signal: str, callback: Callable[[str, Body], None]
    ) -> None:
        """Calls `callback` with path and untrusted body of each such signal of the program that
        owns `name`."""
        key = (name, interface, signal)
        if key not in self._signals:
            self.on_owner(name, _nothing)
            self._add(MatchRule(type="signal", sender=name, interface=interface, member=signal))
        self._signals.setdefault(key, []).append(callback)

    def on_owner(self, name: str, callback: Callable[[str], None]) -> None:
        """Calls `callback` with the unique name of the program that owns `name` whenever that
        changes; "" if none owns it, or there is no bus."""
        if name not in self._on_owner:
            self._owners[name] = ""
            self._add(_owner_rule(name))
            if self._session is not None:
                self._session.start_soon(self._ask_owner, self._session, name)
        self._on_owner.setdefault(name, []).append(callback)
        if self._owners[name]:
            callback(self._owners[name])

    async def request_name(self, name: str) -> bool:
        """Is `name` this program's from now on? False if another program has it; BusError, and
        then it is asked for again at the next connect."""
        self._names.add(name)
        (answer,) = taken(await self._call(message_bus.RequestName(name, DO_NOT_QUEUE)), int)
        if answer not in _IS_OURS:
            self._names.discard(name)
        return answer in _IS_OURS

    async def call(
        self,
        place: Place,
        method: str,
        signature: str | None = None,
        body: Body = (),
        *,
        timeout_s: float = CALL_S,
        start: bool = True,
    ) -> Body:
        """The untrusted body of the answer; BusError.

        `start`: the bus may start the program first, if it knows how.
        """
        address = DBusAddress(place.path, bus_name=place.name, interface=place.interface)
        message = new_method_call(address, method, signature, body)
        if not start:
            message.header.flags |= MessageFlag.no_auto_start
        return await self._call(message, timeout_s)

    async def _call(self, message: Message, timeout_s: float = CALL_S) -> Body:
        if self._session is None:
            await trio.lowlevel.checkpoint()
            raise BusError("there is no connection to the message bus")
        return await self._session.call(message, timeout_s)

    # The connection

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connects, and again whenever the bus went away, until this is cancelled. `started` after
        the first attempt, whether it succeeded or not."""
        if self._address is None:
            logger.info("there is no message bus in this session")
            task_status.started()
            await trio.sleep_forever()
        backoff = Backoff()
        is_ready = False
        said = ""

        def ready() -> None:
            nonlocal is_ready, said
            if not is_ready:
                task_status.started()
            is_ready, said = True, ""
            backoff.over()

        while True:
            try:
                await self._serve_once(ready)
            except BusError as error:
                if str(error) != said:
                    logger.info("the message bus: %s", error)
                said = str(error)
            if not is_ready:
                task_status.started()
            is_ready = True
            await trio.sleep(backoff.after_failure())

    async def _serve_once(self, ready: Callable[[], None]) -> None:
        """Connects, and serves the connection until it ends: BusError says why."""
        assert self._address is not None
        session = _Session(await _opened(self._address), self._take_signal, self._take_call)
        try:
            async with trio.open_nursery() as nursery:
                session.open(nursery)
                if await self._greet(session):
                    ready()
                    await trio.sleep_forever()
        finally:
            self._session = None
            session.close()
            for name in list(self._owners):
                self._set_owner(name, "")
        raise BusError(session.failure or "the connection has ended")

    async def _greet(self, session: _Session) -> bool:
        """Says hello and what the program wants; False if that failed."""
        try:
            await session.call(message_bus.Hello(), CONNECT_S)
            self._session = session  # what is wanted from now on is asked at once
            for rule in self._rules():
                await session.call(message_bus.AddMatch(rule), CALL_S)
            for name in list(self._on_owner):
                await self._ask_owner(session, name)
            for name in list(self._names):
                await session.call(message_bus.RequestName(name, DO_NOT_QUEUE), CALL_S)
        except BusError as error:
            session.fail(str(error))
            return False
        return True

    def _rules(self) -> list[MatchRule]:
        return [
            *map(_owner_rule, self._on_owner),
            *(
                MatchRule(type="signal", sender=name, interface=interface, member=signal)
                for name, interface, signal in self._signals
            ),
        ]

    def _add(self, rule: MatchRule) -> None:
        """Asks the bus for these signals too. (What was asked before is asked at each connect.)"""
        if self._session is not None:
            self._session.start_soon(self._add_now, self._session, rule)

    async def _add_now(self, session: _Session, rule: MatchRule) -> None:
        with contextlib.suppress(BusError):  # then the connection ends, or a connect asks again
            await session.call(message_bus.AddMatch(rule), CALL_S)

    # Who owns a name

    async def _ask_owner(self, session: _Session, name: str) -> None:
        changes = session.owner_changes
        try:
            (owner,) = taken(await session.call(message_bus.GetNameOwner(name), CALL_S), str)
        except BusError as error:
            if not error.name:
                session.fail(str(error))
            owner = ""  # nobody has it
        if session.owner_changes == changes:  # else the news is newer than the answer
            self._set_owner(name, owner)

    def _set_owner(self, name: str, owner: str) -> None:
        if self._owners.get(name) == owner:
            return
        self._owners[name] = owner
        for callback in self._on_owner[name]:
            callback(owner)

    # What comes from the bus

    def _take_signal(self, session: _Session, message: Message) -> None:
        fields = message.header.fields
        interface = fields.get(HeaderFields.interface)
        member = fields.get(HeaderFields.member)
        sender = fields.get(HeaderFields.sender)
        if (sender, member) == (message_bus.bus_name, "NameOwnerChanged"):
            name, _, owner = taken(message.body, str, str, str)
            if name in self._on_owner:
                session.owner_changes += 1
                self._set_owner(name, owner)
            return
        # A signal that is sent to this program alone comes without having been asked for.
        for (name, wanted, signal), callbacks in self._signals.items():
            if (wanted, signal) == (interface, member) and self._owners[name] == sender:
                for callback in callbacks:
                    callback(str(fields.get(HeaderFields.path)), message.body)

    def _take_call(self, message: Message) -> Message:
        """The answer to a call."""
        fields = message.header.fields
        member = fields.get(HeaderFields.member)
        method = fields.get(HeaderFields.path), fields.get(HeaderFields.interface), member
        handler = self._methods.get(method)
        if handler is not None:
            try:
                handler()
            # Any program of the session may call, and must not end this one by a bug in here.
            except Exception:
                logger.exception("a call from the bus failed")
                return new_error(message, "org.freedesktop.DBus.Error.Failed", "s", ("it failed",))
            return new_method_return(message)
        if method[1:] == ("org.freedesktop.DBus.Peer", "Ping"):
            return new_method_return(message)
        said = f"there is no method {printable_text(str(member), _TEXT_MAX)} here"
        return new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (said,))


def _owner_rule(name: str) -> MatchRule:
    rule = MatchRule(
        type="signal",
        sender=message_bus.bus_name,
        interface=message_bus.interface,
        member="NameOwnerChanged",
    )
    rule.add_arg_condition(0, name)
    return rule


def _nothing(owner: str) -> None:
    """Have it known who owns the name."""


async def _opened(address: str) -> trio.SocketStream:
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
        raise BusError(f"cannot connect: {printable_text(why, _TEXT_MAX)}") from error
    except BaseException:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        raise


class _Session:
    """One connection, from its authentication to its end."""

    def __init__(
        self,
        stream: trio.SocketStream,
        take_signal: Callable[[_Session, Message], None],
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
            said = printable_text(" ".join(map(str, reply.message.body[:1])), _TEXT_MAX)
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
