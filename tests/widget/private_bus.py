"""A message bus of a test's own, and programs on it that a test plays."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import trio
from jeepney import (
    DBusAddress,
    HeaderFields,
    MessageType,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.io.trio import DBusConnection, open_dbus_connection
from pedos_widget.bus import Bus

from tests.patience import PATIENCE

# Programs of the machine are not started: a daemon is there if the test has started one.
CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class PrivateBus:
    """Started and stopped by a test; `address` stays the same."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "bus"
        self.address = f"unix:path={self.socket}"
        self._configuration = folder / "bus.conf"
        self._configuration.write_text(CONFIGURATION.format(socket=self.socket))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once the bus listens."""
        assert self._process is None
        self.socket.unlink(missing_ok=True)
        reader, writer = os.pipe()
        command = (
            "dbus-daemon",
            f"--config-file={self._configuration}",
            "--nofork",
            "--nopidfile",
            f"--print-address={writer}",
        )
        self._process = subprocess.Popen(command, pass_fds=[writer], stdin=subprocess.DEVNULL)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            assert answer.readline(), "dbus-daemon has not started"

    def stop(self) -> None:
        """Fine if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def private_bus(folder: Path) -> Iterator[PrivateBus]:
    bus = PrivateBus(folder)
    bus.start()
    try:
        yield bus
    finally:
        bus.stop()


@contextlib.asynccontextmanager
async def running(bus: Bus) -> AsyncIterator[Bus]:
    """Serves `bus` until the end of the block; the first attempt to connect is over."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            yield bus
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Returns when that is so: what another program does is not seen in any other way."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


Answer = Callable[..., tuple[str | None, tuple[Any, ...]]]


class Program:
    """Owns a name; `methods` answer calls with a signature and values. `connection` says the
    rest."""

    def __init__(self, connection: DBusConnection, name: str, methods: dict[str, Answer]) -> None:
        self.connection = connection
        self.name = name
        self.methods = methods
        self.answered = trio.Event()  # a call of its own, that for its name

    async def signal(
        self, path: str, interface: str, member: str, signature: str, body: tuple[Any, ...]
    ) -> None:
        where = DBusAddress(path, interface=interface)
        await self.connection.send(new_signal(where, member, signature, body))

    async def serve(self) -> None:
        """Until the connection is closed, by either side."""
        while True:
            try:
                message = await self.connection.receive()
            except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel):
                return
            if message.header.message_type is MessageType.method_return:
                self.answered.set()
            if message.header.message_type is not MessageType.method_call:
                continue
            method = self.methods.get(message.header.fields[HeaderFields.member])
            if method is None:
                answer = new_error(message, "org.freedesktop.DBus.Error.UnknownMethod")
            else:
                answer = new_method_return(message, *method(*message.body))
            await self.connection.send(answer)


@contextlib.asynccontextmanager
async def program(
    bus: PrivateBus, name: str, methods: dict[str, Answer] | None = None
) -> AsyncIterator[Program]:
    """Another program of the session, until the end of the block."""
    async with await open_dbus_connection(bus.address) as connection, trio.open_nursery() as tasks:
        played = Program(connection, name, methods or {})
        tasks.start_soon(played.serve)  # before it has the name, and with it calls
        await connection.send(message_bus.RequestName(name))
        await played.answered.wait()
        yield played
        tasks.cancel_scope.cancel()
