"""Peers made by hand from the documented layout: what a stranger could send, and a plain one.

They use none of the code under test, so they are a second opinion on the shared memory and on the
rendezvous.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Self

from pedos_host.plain_unix import short_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PAGE = 4096
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
OFFER = struct.Struct("<8sIII")
MAGIC = b"PVCHAN\x00\x01"
NOTIFY_WRITE, NOTIFY_READ = 1, 2

# Offsets in libxenvchan's struct vchan_interface.
INDICES = {"left.cons": 0, "left.prod": 4, "right.cons": 8, "right.prod": 12}
ORDERS = {"left_order": 16, "right_order": 18}
BYTES = {"cli_live": 20, "srv_live": 21, "cli_notify": 22, "srv_notify": 23}


class RawPage:
    """The control page and the rings behind it, field by field."""

    def __init__(self, memfd: int) -> None:
        self.memory = mmap.mmap(memfd, os.fstat(memfd).st_size)

    def get(self, field: str) -> int:
        if field in BYTES:
            return self.memory[BYTES[field]]
        form, at = ("<I", INDICES[field]) if field in INDICES else ("<H", ORDERS[field])
        value: int = struct.unpack_from(form, self.memory, at)[0]
        return value

    def set(self, field: str, value: int) -> None:
        if field in BYTES:
            self.memory[BYTES[field]] = value
        elif field in INDICES:
            struct.pack_into("<I", self.memory, INDICES[field], value & 0xFFFFFFFF)
        else:
            struct.pack_into("<H", self.memory, ORDERS[field], value)

    def ring(self, side: str) -> tuple[int, int]:
        """Where the ring of that side starts, and its size."""
        left, right = self.get("left_order"), self.get("right_order")
        order = left if side == "left" else right
        if order in (10, 11):
            return {10: 1024, 11: 2048}[order], 1 << order
        before = 1 << left if side == "right" and left >= 12 else 0
        return PAGE + before, 1 << order


def memfd(size: int, *, seals: int = SEALS, left: int = 16, right: int = 16) -> int:
    """A memfd with a server's page in it, sealed as told."""
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    page = struct.pack("<4I2H4B", 0, 0, 0, 0, left, right, 2, 1, NOTIFY_WRITE, 0)
    os.pwrite(fd, page[:size], 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class RawServer:
    """Listens like a server and offers whatever descriptors the test likes."""

    def __init__(self, directory: Path, server: int, client: int, port: int) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        with short_path(directory / f"{server}-{client}-{port}.sock") as short:
            self._listening.bind(short)
        self._listening.listen()
        self.offer = OFFER.pack(MAGIC, server, client, port)

    def serve(self, fds: Sequence[int], offer: bytes | None = None) -> bytes:
        """Serves one client in a thread of the test; returns what it answered."""
        connection, _ = self._listening.accept()
        with connection:
            rights = array.array("i", fds)
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
            connection.sendmsg([self.offer if offer is None else offer], control)
            with contextlib.suppress(ConnectionResetError):
                return connection.recv(1)
        return b""

    def close(self) -> None:
        self._listening.close()


class RawClient:
    """A client that keeps its indices in the shared page, as plain libxenvchan does."""

    def __init__(self, directory: Path, server: int, client: int, port: int) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        with short_path(directory / f"{server}-{client}-{port}.sock") as short:
            self._connection.connect(short)
        offer, control, _, _ = self._connection.recvmsg(OFFER.size, socket.CMSG_SPACE(12))
        assert OFFER.unpack(offer) == (MAGIC, server, client, port)
        fds = array.array("i")
        fds.frombytes(control[0][2])
        memory, self._event, self._notify = fds
        self.page = RawPage(memory)
        os.close(memory)
        self.page.set("cli_live", 1)
        self.page.set("srv_notify", NOTIFY_WRITE)
        self.notify()
        self._connection.send(b"\x01")

    def notify(self) -> None:
        os.eventfd_write(self._notify, 1)

    def wait(self) -> None:
        """Sleeps until the server notifies; fails the test when it does not within a second."""
        assert select.select([self._event], [], [], 1.0)[0], "no notification came"
        os.eventfd_read(self._event)

    def _answer(self, bit: int) -> None:
        bits = self.page.get("cli_notify")
        if bits & bit:
            self.page.set("cli_notify", bits & ~bit)
            self.notify()

    def write(self, data: bytes) -> None:
        """Writes all of data, waiting for room like libxenvchan_write of a blocking channel."""
        page, (start, size) = self.page, self.page.ring("left")
        for byte in data:
            while page.get("left.prod") - page.get("left.cons") == size:
                page.set("srv_notify", page.get("srv_notify") | NOTIFY_READ)
                if page.get("left.prod") - page.get("left.cons") == size:
                    self.wait()
            page.memory[start + page.get("left.prod") % size] = byte
            page.set("left.prod", page.get("left.prod") + 1)
            self._answer(NOTIFY_WRITE)

    def read(self, count: int) -> bytes:
        """Reads exactly count bytes, waiting for them."""
        page, (start, size) = self.page, self.page.ring("right")
        got = bytearray()
        while len(got) < count:
            if page.get("right.prod") == page.get("right.cons"):
                page.set("srv_notify", page.get("srv_notify") | NOTIFY_WRITE)
                if page.get("right.prod") == page.get("right.cons"):
                    self.wait()
                    continue
            got.append(page.memory[start + page.get("right.cons") % size])
            page.set("right.cons", page.get("right.cons") + 1)
            self._answer(NOTIFY_READ)
        return bytes(got)

    def close(self) -> None:
        """The clean way: flag, notification, and then the hang-up."""
        self.page.set("cli_live", 0)
        self.notify()
        self.die()

    def die(self) -> None:
        """As the kernel does for a process that is killed: the descriptors go, nothing is said."""
        self._connection.close()
        if self._event >= 0:
            os.close(self._event)
            os.close(self._notify)
        self._event = self._notify = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.page.memory.close()
