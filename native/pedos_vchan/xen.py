"""Vchan between domains of a Xen host: a listener and a connector by (domain, port), and xenstore.

The same as `shm` for real domains. The server announces itself in xenstore, under a path that only
its own domain may write, so a client knows which domain it talks to. Xen's libraries are loaded on
first use: `missing` says what is not there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from ._native import ffi, lib
from .addresses import (
    CONTROL_ORDER,
    CONTROL_PORT,
    DATA_ORDER,
    check_address,
    check_orders,
    is_data_port,
)
from .channel import Channel
from .threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import _native

__all__ = [
    "CONTROL_ORDER",
    "CONTROL_PORT",
    "DATA_ORDER",
    "Channel",
    "Listener",
    "Store",
    "connect",
    "connect_when_there",
    "listen",
    "missing",
    "own_domain",
    "share_loop",
]

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Bytes of one message of xenstore (xen/io/xs_wire.h). A list of children may take several.
_VALUE_SIZE = 4096
_PATH_SIZE = 3072
# Seconds between two attempts to join a server. Each causes work for xenstored as well.
PAUSE = 0.05  # seconds
REFUSED_PAUSE_MAX = 1.0

_WHY = {
    errno.ENODEV: "this is no Xen domain, or its kernel has not loaded xen-evtchn, xen-gntdev and "
    "xen-gntalloc",
    errno.EACCES: "only root may open a channel (see /dev/xen)",
    errno.ENOSPC: "the grants of this domain are used up (the parameter `limit` of its kernel's "
    "module xen_gntalloc)",
    errno.EPROTO: "the server's shared page is not a vchan ring",
    errno.ENOENT: "no server is announced",
    errno.ECONNREFUSED: "the server that is announced cannot be joined: it is gone, or has its "
    "client",
}


def missing() -> str:
    """Why Xen cannot be used here, and what to install; empty if it can."""
    problem = ffi.new("char **")
    if lib.pv_xen_load(problem) < 0:
        return ffi.string(problem[0]).decode()
    return ""


def share_loop() -> None:
    """For a program whose event loop serves more than its channels' peers: from now on a turn
    delays it by 50 us at most, also if there are few channels."""
    lib.pv_channel_share_loop(1)


def _error(number: int) -> OSError:
    if number == errno.EPROTO:
        return ConnectionError(number, _WHY[number])
    return OSError(number, missing() or _WHY.get(number, os.strerror(number)))


async def _in_thread(call: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """Runs a call that waits for xenstore and the kernel, some 1 ms, beside the event loop."""
    limiter = trio.to_thread.current_default_thread_limiter()
    return await in_thread(partial(call, *arguments, **named), limiter=limiter)


async def _make(call: Callable[..., int], *arguments: int) -> _native.Channel:
    """The channel that a call of xen.h makes, or an OSError."""
    holder = ffi.new("struct pv_channel **")
    try:
        error = await _in_thread(call, *arguments, holder)
    except GeneratorExit:  # closed meanwhile
        if holder[0]:
            lib.pv_channel_free(holder[0])
        raise
    if error < 0:
        raise _error(-error)
    made: _native.Channel = holder[0]
    return made


def _adopt(native: _native.Channel, domain: int, peer: int, port: int) -> Channel:
    """A channel whose one end of a socket pair hangs up when the peer's domain is gone."""
    try:
        live, held = socket.socketpair()
    except BaseException:
        lib.pv_channel_free(native)
        raise
    with live, held:
        channel = Channel(native, live, domain=domain, peer_domain=peer, port=port)
        error = lib.pv_xen_guard(native, held.detach())
    if error < 0:
        channel.close()
        raise _error(-error)
    _follow_guard()
    return channel


_guard_is_followed: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("pedos_vchan.xen", False)


def _follow_guard() -> None:
    """Has this event loop log what the guard's thread reports about itself."""
    if not _guard_is_followed.get():
        _guard_is_followed.set(True)
        trio.lowlevel.spawn_system_task(_tell_of_guard)


async def _tell_of_guard() -> None:
    news = lib.pv_xen_guard_news()
    was_blind = False
    while True:
        await trio.lowlevel.wait_readable(news)
        with contextlib.suppress(BlockingIOError):  # another event loop's task was first
            os.eventfd_read(news)
        blind = lib.pv_xen_guard_blind()
        if blind and not was_blind:
            log.error(
                "it cannot be seen whether other domains live: xenstore does not answer (%s). "
                "It is asked again and again; until it answers channels may outlive their domains",
                os.strerror(blind),
            )
        elif was_blind and not blind:
            log.info("it is seen again whether other domains live: xenstore answers")
        was_blind = bool(blind)


async def listen(
    domain: int,
    peer: int,
    port: int,
    *,
    order_left: int = CONTROL_ORDER,
    order_right: int = CONTROL_ORDER,
) -> Listener:
    """Makes this domain's server for the one client domain peer; announced when this returns.

    The orders are log2 of the bytes from client to server (left) and back (right), 10 to 20; the
    library may make small ones larger. What an earlier server announced under this port is
    replaced. ``ValueError`` for impossible numbers or orders, or for a channel to oneself;
    ``OSError`` with a sentence that says what to do: ENOSYS without Xen's libraries, ENODEV without
    its devices, EACCES, ENOSPC when the domain's grants are used up.
    """
    check_address(domain, peer, port)
    check_orders(order_left, order_right)
    native = await _make(lib.pv_xen_serve, domain, peer, port, order_left, order_right)
    return Listener(native, domain, peer, port)


class Listener:
    """A server that waits for its one client. Made by `listen`."""

    def __init__(self, native: _native.Channel, domain: int, peer: int, port: int) -> None:
        self._native: _native.Channel | None = native
        self._event_fd = lib.pv_channel_event_fd(native)
        self._address = (domain, peer, port)

    async def accept(self) -> Channel:
        """Waits for the client; then the listener is closed, and its port free.

        ``trio.ClosedResourceError`` when the listener was or gets closed.
        ``trio.BrokenResourceError`` when the client's domain woke us too often without connecting:
        the ring has failed, a client could not use it any more, and the listener is closed. Make
        another one.
        """
        await trio.lowlevel.checkpoint()
        while self._native is not None and not lib.pv_channel_client_came(self._native):
            await trio.lowlevel.wait_readable(self._event_fd)
            if self._native is None:
                break
            lib.pv_channel_woken(self._native)
            if lib.pv_channel_failure(self._native):
                self.close()
                raise trio.BrokenResourceError(
                    f"event flood: domain {self._address[1]} woke us too often without coming"
                )
        native, self._native = self._native, None
        if native is None:
            raise trio.ClosedResourceError("this listener was already closed")
        try:
            await _in_thread(lib.pv_xen_admit, native)
        except BaseException:
            lib.pv_channel_free(native)
            raise
        return _adopt(native, *self._address)

    def close(self) -> None:
        """Stops listening and removes the announcement. Idempotent."""
        native, self._native = self._native, None
        if native is not None:
            trio.lowlevel.notify_closing(self._event_fd)
            lib.pv_channel_free(native)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        native, self._native = getattr(self, "_native", None), None
        if native is not None:
            lib.pv_channel_free(native)


async def connect(domain: int, peer: int, port: int) -> Channel:
    """Opens this domain's end of the channel whose server is the domain peer.

    ``FileNotFoundError`` if no server is announced, ``ConnectionRefusedError`` if the announced one
    is gone or has its client, ``ConnectionError`` if what it shares is no ring; ``ValueError`` and
    other ``OSError`` as for `listen`.
    """
    check_address(domain, peer, port)
    native = await _make(lib.pv_xen_join, domain, peer, port)
    return _adopt(native, domain, peer, port)


async def connect_when_there(domain: int, peer: int, port: int) -> Channel:
    """The same, but waits while no server that can be joined is announced there.

    The peer may write there as often as it likes; this looks at most twenty times a second.
    """
    refused = PAUSE
    with Store() as store:
        store.watch(f"/local/domain/{peer}/data/vchan/{domain}/{port}")
        while True:
            try:
                return await connect(domain, peer, port)
            except FileNotFoundError:
                await trio.sleep(PAUSE)
                await store.changed()  # the first one comes at once
                refused = PAUSE
            except ConnectionRefusedError:
                # Finding out more would cost more, and a server for us is soon free. Its node need
                # not change for that, so this does not wait for a change.
                await trio.sleep(refused)
                refused = min(2 * refused, REFUSED_PAUSE_MAX)


def clear_data_ports(domain: int) -> None:
    """Removes what a killed program of this domain announced on the ports that dom0 assigns. A
    channel that has its client is not announced any more. ``OSError``."""
    folder = f"/local/domain/{domain}/data/vchan"
    with Store() as store:
        for peer in store.list(folder):
            for port in filter(is_data_port, store.list(f"{folder}/{peer}")):
                store.remove(f"{folder}/{peer}/{port}")


def own_domain() -> int:
    """The number of the domain that this runs in, as xenstore has it. ``OSError`` as `listen`."""
    with Store() as store:
        return int(store.read("domid") or "0")


class Store:
    """A connection to xenstore. Paths that do not begin with a slash are of the own domain.

    A call waits for xenstore's answer, some 0.1 ms, and delays the event loop for as long; do not
    make hundreds at a time. Another domain may have written what is read: it is untrusted.
    ``OSError`` if xenstore refuses or is not there.
    """

    def __init__(self) -> None:
        holder = ffi.new("struct pv_store **")
        error = lib.pv_store_open(holder)
        if error < 0:
            raise _error(-error)
        self._native: _native.Store | None = holder[0]
        self._into = ffi.new(f"char[{_VALUE_SIZE}]")
        self._waiting = -1

    def _handle(self) -> _native.Store:
        if self._native is None:
            raise trio.ClosedResourceError("this connection to xenstore was already closed")
        return self._native

    def read(self, path: str) -> str | None:
        """A node's value; None if it is not there."""
        handle = self._handle()
        length = lib.pv_store_read(handle, os.fsencode(path), self._into, _VALUE_SIZE)
        if length == -errno.ENOENT:
            return None
        self._check(length, path)
        value = ffi.buffer(self._into, min(length, _VALUE_SIZE))
        return bytes(value).decode(errors="replace")

    def list(self, path: str) -> list[str]:
        """The names of a node's children; none if it is not there."""
        size = _VALUE_SIZE
        while True:
            into = ffi.new(f"char[{size}]")
            length = lib.pv_store_list(self._handle(), os.fsencode(path), into, size)
            if length == -errno.ENOENT:
                return []
            self._check(length, path)
            if length <= size:
                names = bytes(ffi.buffer(into, length)).decode(errors="replace")
                return names.split("\0")[:-1]
            size = length

    def write(self, path: str, value: str) -> None:
        """Makes or changes a node."""
        data = value.encode()
        self._check(lib.pv_store_write(self._handle(), os.fsencode(path), data, len(data)), path)

    def remove(self, path: str) -> None:
        """Removes a node and everything below it; a missing one is no error."""
        error = lib.pv_store_remove(self._handle(), os.fsencode(path))
        if error != -errno.ENOENT:
            self._check(error, path)

    def watch(self, path: str) -> None:
        """Watches a node and all below it, or "@introduceDomain" and "@releaseDomain" (in dom0).

        `changed` returns at once for it the first time. A domain may have 128 watches.
        """
        self._check(lib.pv_store_watch(self._handle(), os.fsencode(path)), path)

    def unwatch(self, path: str) -> None:
        """Ends `watch`. Events that came before may still be reported."""
        self._check(lib.pv_store_unwatch(self._handle(), os.fsencode(path)), path)

    async def changed(self) -> set[str]:
        """Waits until something that is watched has changed, or was first watched; returns
        which."""
        await trio.lowlevel.checkpoint()
        while True:
            paths = self._events()
            if paths:
                return paths
            self._waiting = lib.pv_store_fileno(self._handle())
            try:
                await trio.lowlevel.wait_readable(self._waiting)
            finally:
                self._waiting = -1

    def _events(self) -> set[str]:
        paths: set[str] = set()
        while True:
            length = lib.pv_store_event(self._handle(), self._into, _PATH_SIZE)
            self._check(length, "a watch")
            if not length:
                return paths
            event = bytes(ffi.buffer(self._into, min(length, _PATH_SIZE)))
            paths.add(event.decode(errors="replace"))

    def _check(self, result: int, path: str) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result), path)

    def close(self) -> None:
        """Ends all watches; a task in `changed` gets ``trio.ClosedResourceError``. Idempotent."""
        native, self._native = self._native, None
        if native is not None:
            if self._waiting >= 0:
                trio.lowlevel.notify_closing(self._waiting)
            lib.pv_store_close(native)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
