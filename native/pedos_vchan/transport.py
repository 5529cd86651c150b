"""Channels of one domain to others, under any hypervisor: `listen` and `connect` by peer.

A program makes its transport once and need not know which it is. Both end and fail alike; only on
Xen can a listener break, when its peer floods it with wake-ups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from . import shm, xen
from .addresses import CONTROL_ORDER, CONTROL_PORT, DATA_ORDER

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from .channel import Channel

__all__ = [
    "CONTROL_ORDERS",
    "CONTROL_PORT",
    "DATA_ORDERS",
    "Listener",
    "SharedMemory",
    "Transport",
    "Xen",
]

#: Log2 of the bytes from the client to the server, and back.
CONTROL_ORDERS = (CONTROL_ORDER, CONTROL_ORDER)
DATA_ORDERS = (DATA_ORDER, DATA_ORDER)


class Listener(Protocol):
    """A server that waits for its one client, and is closed when the client has connected."""

    async def accept(self) -> Channel:
        """The client's channel. OSError, ``trio.ClosedResourceError``; ``trio.BrokenResourceError``
        when no client can come any more."""
        ...

    def close(self) -> None:
        """Stops listening. Idempotent."""
        ...

    def __enter__(self) -> Listener: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Transport(Protocol):
    """Makes the channels of the domain in which this runs."""

    async def listen(
        self, peer: int, port: int, orders: tuple[int, int] = CONTROL_ORDERS
    ) -> Listener:
        """A server for the one client domain `peer`, which can connect when this returns.

        ``ValueError`` for numbers that cannot be, ``OSError``.
        """
        ...

    async def connect(self, peer: int, port: int) -> Channel:
        """This domain's end of the channel whose server is the domain `peer`.

        ``FileNotFoundError`` or ``ConnectionRefusedError`` when no server is there (any more),
        ``ValueError`` for numbers that cannot be, other ``OSError``.
        """
        ...

    def clear_data_ports(self) -> None:
        """Removes what a killed predecessor announced on the ports that dom0 assigns, where no
        client has come. Only before this domain listens on one itself. ``OSError``."""
        ...


class SharedMemory:
    """Domains that are processes of one machine and meet in `directory`."""

    def __init__(self, directory: Path, domain: int) -> None:
        self._directory = directory
        self._domain = domain

    async def listen(
        self, peer: int, port: int, orders: tuple[int, int] = CONTROL_ORDERS
    ) -> Listener:
        left, right = orders
        return await shm.listen(
            self._directory, self._domain, peer, port, order_left=left, order_right=right
        )

    async def connect(self, peer: int, port: int) -> Channel:
        return await shm.connect(self._directory, self._domain, peer, port)

    def clear_data_ports(self) -> None:
        shm.clear_data_ports(self._directory, self._domain)


class Xen:
    """Domains of a Xen host, of which this is the one with the number `domain`."""

    def __init__(self, domain: int) -> None:
        self._domain = domain

    async def listen(
        self, peer: int, port: int, orders: tuple[int, int] = CONTROL_ORDERS
    ) -> Listener:
        left, right = orders
        return await xen.listen(self._domain, peer, port, order_left=left, order_right=right)

    async def connect(self, peer: int, port: int) -> Channel:
        return await xen.connect(self._domain, peer, port)

    def clear_data_ports(self) -> None:
        xen.clear_data_ports(self._domain)
