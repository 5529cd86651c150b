"""The messages of version 1 of the protocol: what a program of the first release reads.

version_1.json has the names in each message, as that release's schemas had them (commit a45585e),
and is never changed: such a program refuses a message with any other name, or without one of these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from pedos_protocol.connection import Connection
from pedos_protocol.events import Hello

MESSAGES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("version_1.json").read_text()
)


def wrong_in_1(names: dict[str, Any], message: Any) -> str | None:
    """Why a reader of version 1 refuses this message, of which it knows these names; None if it
    does not."""
    if message.keys() != names.keys():
        return f"{sorted(message)} instead of {sorted(names)}"
    for name, inner in names.items():
        if inner is None or message[name] is None:
            continue
        for each in message[name] if isinstance(message[name], list) else [message[name]]:
            if (wrong := wrong_in_1(inner, each)) is not None:
                return f"{name}: {wrong}"
    return None


class SaysVersion1(trio.abc.HalfCloseableStream):
    """A stream whose first frame, this side's hello, offers version 1 alone."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self._stream = stream
        self._has_said_hello = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self._has_said_hello:
            self._has_said_hello = True
            connection = Connection()
            (hello,) = connection.receive_data(data)
            assert isinstance(hello, Hello)
            data = Connection().send(Hello((1, 1), hello.program))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
