"""The agent's part of the class: a toy's words go over a channel of our own into a file of the
target. For as long as the toy is lent both ends hold a lock, which ends with them at the latest."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from io import FileIO
from pathlib import Path

import attrs
import trio
from pedos_agent.device_classes.base import Borrowing, Carrier, DeviceClass, Host
from pedos_agent.device_classes.data_channel import from_target, to_source
from pedos_agent.device_classes.hearing import Hearing
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.inventory.local_device import LocalDevice
from pedos_host.faultpoints import reach
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_vchan.stream import VchanStream
from pedos_vchan.transport import Listener

from tests.fake_class import FAKE


@attrs.frozen(eq=False)
class BorrowedToy:
    """A file `fake-ID`, where borrowed disks are too; it has no name that dom0 knows."""

    params: ImportStart
    host: Host
    name: None = None

    @property
    def path(self) -> Path:
        return self.host.settings.dev / f"{FAKE.name}-{self.params.device}"

    async def run(self, lifetime: Lifetime) -> None:
        async with VchanStream(await to_source(self.host.transport, self.params)) as stream:
            await reach("import.connected")
            words = await stream.receive_some()
            with _locked(self.path, words):
                await reach("import.ready")
                lifetime.ready({})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_with, stream, lifetime)
                    await lifetime.ending()
                    nursery.cancel_scope.cancel()
        await reach("import.stopped")

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        return None

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        pass


@attrs.frozen(eq=False)
class Toys:
    host: Host

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        mark = self.host.settings.dev / f"{FAKE.name}-{params.device}.lent"
        hearing = lifetime.hearing = Hearing(self.host.heard, params.muted)
        with (
            _locked(mark, _sound(muted=params.muted)) as file,
            await self.host.transport.listen(params.peer, params.port) as listener,
        ):
            hearing.tell = partial(_mute, file)
            await reach("export.listening")
            lifetime.ready({})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve, listener, lifetime, found.device.description)
                await lifetime.ending()
                nursery.cancel_scope.cancel()
        await reach("export.stopped")

    def number(self, found: LocalDevice) -> str | None:
        return None

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        return BorrowedToy(params, self.host)

    def of_predecessor(self, name: str) -> Borrowing | None:
        return None

    async def clean_leftovers(self) -> None:
        for path in self.host.settings.dev.glob(f"{FAKE.name}-*"):
            path.unlink()


class Fake(DeviceClass):
    name = FAKE.name

    def carrier(self, host: Host) -> Carrier:
        return Toys(host)


def _sound(*, muted: bool) -> bytes:
    """What a toy's mark says of it."""
    return b"0" if muted else b"1"


async def _mute(file: FileIO, muted: bool) -> None:
    await reach("export.muting")
    os.pwrite(file.fileno(), _sound(muted=muted), 0)
    await reach("export.muted")


@contextlib.contextmanager
def _locked(path: Path, content: bytes = b"") -> Iterator[FileIO]:
    """A file that is there, and locked, for as long as this lasts."""
    with path.open("wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        try:
            yield file
        finally:
            path.unlink()


async def _serve(listener: Listener, lifetime: Lifetime, words: str) -> None:
    channel = await from_target(listener, lifetime)
    if channel is not None:
        async with VchanStream(channel) as stream:
            await reach("export.connected")
            await stream.send_all(words.encode())
            await _end_with(stream, lifetime)


async def _end_with(stream: VchanStream, lifetime: Lifetime) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    lifetime.end("the other end closed the channel")
