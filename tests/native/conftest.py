"""Pairs of connected channels in one process."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import trio
from pedos_vchan import shm
from pedos_vchan.stream import VchanStream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pedos_vchan.channel import Channel

SERVER, CLIENT = 7, 3


class Pairs:
    """Makes connected channels, each on a port of its own, and closes them after the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ports = itertools.count(10)
        self._made: list[Channel] = []

    async def channels(self, left: int = 16, right: int = 16) -> tuple[Channel, Channel]:
        """Server and client."""
        port = next(self._ports)
        listener = await shm.listen(
            self.directory, SERVER, CLIENT, port, order_left=left, order_right=right
        )
        ends: list[Channel] = []

        async def accept() -> None:
            ends.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            client = await shm.connect(self.directory, CLIENT, SERVER, port)
        self._made += [ends[0], client]
        return ends[0], client

    async def streams(self, left: int = 16, right: int = 16) -> tuple[VchanStream, VchanStream]:
        """Server and client."""
        server, client = await self.channels(left, right)
        return VchanStream(server), VchanStream(client)

    def close(self) -> None:
        for channel in self._made:
            channel.close()


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[Pairs]:
    made = Pairs(tmp_path)
    yield made
    made.close()
