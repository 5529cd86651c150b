"""Pairs of connected channels in one process, and the fixtures of tests of qvm-call."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pedos_vchan import shm
from pedos_vchan.stream import VchanStream

from .calling_pair import modest  # noqa: F401  (a fixture)
from .running_qvm_call import agent, program, run  # noqa: F401  (fixtures)

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


class OldestFirst(random.Random):
    """In the place of trio's dice: of the tasks given to it, oldest first, the last runs first."""

    def shuffle(self, x: Any) -> None:
        x.reverse()


@pytest.fixture
def oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that can run in the same pass run in the order in which they were made."""
    loop = trio._core._run
    monkeypatch.setattr(loop, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(loop, "_r", OldestFirst())
