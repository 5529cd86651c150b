"""D-Bus: two dbus-fast connections to a private dbus-daemon, which forwards every call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from .drive import PAYLOAD, load, main, say_ready, started

NAME, PATH = "org.example.Bench", "/bench"

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@contextlib.contextmanager
def bus(socket: str) -> Iterator[str]:
    """A private bus; yields its address."""
    file = Path(socket).with_name("bus.conf")
    file.write_text(CONFIGURATION.format(socket=socket))
    command = ["dbus-daemon", f"--config-file={file}", "--nofork", "--print-address"]
    # It complains on standard error when it may not raise its limit of descriptors.
    with started(command, quiet=True) as line:
        yield line


async def serve(address: str) -> None:
    connection = await MessageBus(bus_address=address).connect()

    def echo(message: Message) -> Message | None:
        if message.message_type is MessageType.METHOD_CALL and message.member == "Echo":
            return Message.new_method_return(message, message.signature, message.body)
        return None

    connection.add_message_handler(echo)
    await connection.request_name(NAME)
    say_ready()
    await asyncio.get_running_loop().create_future()


async def client(address: str, in_flight: int, calls: int) -> float:
    connection = await MessageBus(bus_address=address).connect()

    async def call() -> None:
        answer = await connection.call(
            Message(
                destination=NAME,
                path=PATH,
                interface=NAME,
                member="Echo",
                signature="s",
                body=[PAYLOAD],
            )
        )
        assert answer is not None and answer.body == [PAYLOAD]

    try:
        return await load(call, in_flight, calls)
    finally:
        connection.disconnect()


if __name__ == "__main__":
    main("dbus_daemon", serve, client, bus)
