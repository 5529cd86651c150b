"""Owns one attached channel: its memory and its descriptors."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import trio

from ._native import lib

if TYPE_CHECKING:
    from . import _native


class Channel:
    """One end of a vchan, however it was attached. `shm.connect` and `Listener.accept` make them.

    Pass it to a `VchanStream` or to `pump`, which then close it. An end that is dropped unclosed is
    closed when Python collects it; the peer sees a clean close either way.
    """

    __slots__ = ("_pumping", "_wait_fd", "domain", "handle", "peer_domain", "port")

    def __init__(
        self,
        native: _native.Channel,
        live: socket.socket,
        *,
        domain: int,
        peer_domain: int,
        port: int,
    ) -> None:
        """Takes over native, and live if it succeeds (its hang-up reports the peer's death)."""
        #: The C side; None once closed. `handle or native()` is `native()`, without a call of
        #: Python where each turn needs it.
        self.handle: _native.Channel | None = None
        self._pumping = False
        self.domain = domain
        self.peer_domain = peer_domain
        self.port = port
        error = lib.pv_channel_watch(native, live.fileno())
        if error < 0:
            lib.pv_channel_free(native)
            raise OSError(-error, os.strerror(-error))
        live.detach()
        self._wait_fd = lib.pv_channel_wait_fd(native)
        self.handle = native

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Channel {self.domain} to {self.peer_domain}, port {self.port}, {state}>"

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self.handle is None

    def native(self) -> _native.Channel:
        """The C side; ``trio.ClosedResourceError`` once closed."""
        if self.handle is None:
            raise trio.ClosedResourceError("this channel was already closed")
        return self.handle

    def fileno(self) -> int:
        """Readable when the peer has news. For waiting only."""
        if self.handle is None:
            self.native()  # which raises
        return self._wait_fd

    def lend(self) -> _native.Channel:
        """Gives the C side to a thread until `give_back`; no other code may use it meanwhile."""
        if self._pumping:
            raise trio.BusyResourceError("another task pumps this channel")
        native = self.native()
        self._pumping = True
        return native

    def give_back(self) -> None:
        """Ends `lend`."""
        self._pumping = False

    def close(self) -> None:
        """Says goodbye to the peer and frees everything. Idempotent.

        Not while it is pumped: cancel the pump instead, which closes it.
        """
        if self._pumping:
            raise trio.BusyResourceError("this channel is being pumped; cancel the pump instead")
        native, self.handle = self.handle, None
        if native is not None:
            lib.pv_channel_free(native)

    def __del__(self) -> None:
        native, self.handle = getattr(self, "handle", None), None
        if native is not None:
            lib.pv_channel_free(native)
