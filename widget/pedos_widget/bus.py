"""A message bus: one connection for all that the widget does there, or none.

A bus that is missing, or goes away, is no error: calls fail with `BusError`, and the connection is
tried again when there is a sign of a bus (`attempts`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple

import trio
from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    MessageFlag,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.bus_messages import message_bus
from jeepney.low_level import Message
from pedos_protocol.names import printable_text

from pedos_widget.attempts import Attempts
from pedos_widget.bus_session import (
    CALL_S,
    CONNECT_S,
    TEXT_MAX,
    Body,
    BusError,
    Session,
    opened,
    socket_path,
    taken,
)

logger = logging.getLogger(__name__)

DO_NOT_QUEUE: Final = 4  # a flag of RequestName
_IS_OURS = (1, 4)  # its answers: the name is this connection's now, or was already


class Place(NamedTuple):
    """An object of a program on the bus, and one of its interfaces."""

    name: str
    path: str
    interface: str


#: The widget itself: a second one asks the first to show its devices.
WIDGET: Final = Place("org.pedos.Widget", "/org/pedos/Widget", "org.pedos.Widget")

#: Who keeps the list of a desktop's tray icons. It says when somebody shows them.
TRAYS: Final = Place(
    "org.kde.StatusNotifierWatcher", "/StatusNotifierWatcher", "org.kde.StatusNotifierWatcher"
)


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
        self._session: Session | None = None
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
        attempts = Attempts()
        path = socket_path(self._address)
        is_ready = False
        said = ""

        def ready() -> None:
            nonlocal is_ready, said
            if not is_ready:
                task_status.started()
            is_ready, said = True, ""
            attempts.succeeded()

        try:
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
                await attempts.next(path)
        finally:
            attempts.close()

    async def _serve_once(self, ready: Callable[[], None]) -> None:
        """Connects, and serves the connection until it ends: BusError says why."""
        assert self._address is not None
        session = Session(await opened(self._address), self._take_signal, self._take_call)
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

    async def _greet(self, session: Session) -> bool:
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

    async def _add_now(self, session: Session, rule: MatchRule) -> None:
        with contextlib.suppress(BusError):  # then the connection ends, or a connect asks again
            await session.call(message_bus.AddMatch(rule), CALL_S)

    # Who owns a name

    async def _ask_owner(self, session: Session, name: str) -> None:
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

    def _take_signal(self, session: Session, message: Message) -> None:
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
        said = f"there is no method {printable_text(str(member), TEXT_MAX)} here"
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
