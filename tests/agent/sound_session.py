"""A user's session as an agent sees it: what `pedos-sound` says, in Python, without any sound."""

from __future__ import annotations

import array
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from pedos_host.plain_unix import short_path
from pedos_protocol import sound_frames, sound_link
from pedos_protocol.sound_frames import AUDIO, START, STOP, Frame
from pedos_protocol.sound_link import (
    Borrow,
    Close,
    Device,
    Devices,
    Ended,
    Failed,
    Hello,
    Lend,
    Listening,
    Message,
    Mute,
    Ready,
    Refused,
    Server,
    Welcome,
)

from tests.patience import PATIENCE

MIC = Device("mic", "default", "Built-in Audio", True)
HEADSET = Device("alsa_input.usb-1", "usb:0d8c:0014", "USB Headset", False)
SILENCE = sound_frames.silence(0, 480)


def audio(number: int, counter: int = 0) -> Frame:
    """Ten milliseconds of sound with this number in it."""
    return Frame(AUDIO, counter, number.to_bytes(2, "little") * 480)


class FakeStream:
    """A stream that a session was given: its end of the socketpair, and what came with it."""

    def __init__(self, message: Lend | Borrow, end: socket.socket) -> None:
        self.message = message
        self.id = message.id
        self.socket = end
        self.muted = isinstance(message, Lend) and message.is_muted
        self.is_closed = False
        self.sent: list[Frame] = []
        self.dropped = 0
        self._read = bytearray()
        self._frames: list[Frame] = []
        end.setblocking(False)

    @property
    def _from(self) -> str:
        """Who speaks at the other end."""
        return sound_frames.TARGET if isinstance(self.message, Lend) else sound_frames.SOURCE

    def send(self, frame: Frame) -> None:
        """Give a frame to the other side, whole or not at all."""
        raw = sound_frames.build(frame)
        try:
            assert self.socket.send(raw, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(raw)
            self.sent.append(frame)
        except BlockingIOError:
            self.dropped += 1

    def start(self) -> None:
        self.send(Frame(START))

    def stop(self) -> None:
        self.send(Frame(STOP))

    async def next(self) -> Frame | None:
        """The next frame of the other side; None when there will be none."""
        with trio.fail_after(PATIENCE):
            while not self._frames:
                if self.is_closed:
                    return None
                try:
                    some = self.socket.recv(65536)
                except BlockingIOError:
                    with contextlib.suppress(trio.ClosedResourceError):
                        await trio.lowlevel.wait_readable(self.socket)
                    continue
                except ConnectionResetError:
                    return None
                if not some:
                    return None
                self._read += some
                self._frames = sound_frames.take(self._read, self._from)
        return self._frames.pop(0)

    async def until(self, wanted: Frame) -> int:
        """Skips what comes before that frame; how much that was."""
        skipped = 0
        while (frame := await self.next()) != wanted:
            assert frame is not None, "the channel has ended"
            skipped += 1
        return skipped

    def close(self) -> None:
        self.is_closed = True
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


class FakeSession:
    """One connection to an agent's socket. It answers what it is asked, unless `mute` says not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.streams: dict[int, FakeStream] = {}
        self.received: list[Message] = []
        self.refused: str | None = None
        self.over = trio.Event()
        # What is answered to a message of that kind; None: nothing.
        self.answer: dict[type[Any], Callable[[Any], Message | None]] = {
            Lend: lambda message: Ready(message.id),
            Borrow: lambda message: Ready(message.id),
            Mute: lambda message: Ready(message.id),
            Close: lambda message: Ended(message.id, ""),
        }
        self._news = trio.Event()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with short_path(path) as short:
            self.socket.connect(short)
        self.socket.setblocking(False)

    def send(self, message: Message) -> None:
        if isinstance(message, Ended | Failed) and message.id in self.streams:
            self.streams[message.id].close()
        self.send_raw(sound_link.build(message))

    def send_raw(self, datagram: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self.socket.sendmsg([datagram], rights if descriptors else [], socket.MSG_NOSIGNAL)

    def greet(self, *devices: Device) -> None:
        """Say what one says at first; with these microphones."""
        self.send(Hello(sound_link.VERSION, "fake"))
        self.send(Server(""))
        self.send(Devices(devices))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take what the agent sends until it ends the connection; started() when it has said
        something, or has ended it."""
        try:
            while (message := await self._receive()) is not None:
                self.received.append(message)
                if isinstance(message, Refused):
                    self.refused = message.why
                elif isinstance(message, Mute):
                    self.streams[message.id].muted = message.is_muted
                elif isinstance(message, Close):
                    self.streams[message.id].close()
                if (answer := self.answer.get(type(message))) is not None:
                    self._say(answer(message))
                self._tell()
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
        finally:
            self.over.set()
            self._tell()
            self.close()
        task_status.started()

    def _say(self, message: Message | None) -> None:
        if message is not None:
            with contextlib.suppress(OSError):
                self.send(message)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _receive(self) -> Message | None:
        while True:
            try:
                await trio.lowlevel.wait_readable(self.socket)
                if self.socket.fileno() < 0:
                    return None
                raw, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(64))
            except BlockingIOError:
                continue
            except (ConnectionResetError, trio.ClosedResourceError):
                return None
            if not raw:
                return None
            message = sound_link.parse(raw, sound_link.AGENT)
            fds = [fd for *_, data in ancillary for fd in array.array("i", data)]
            assert bool(fds) == isinstance(message, sound_link.WITH_DESCRIPTOR)
            if isinstance(message, Lend | Borrow):
                (fd,) = fds
                self.streams[message.id] = FakeStream(message, socket.socket(fileno=fd))
            return message

    async def until(self, wanted: Callable[[], Any]) -> Any:
        """Waits until something the agent has sent makes `wanted` true."""
        with trio.fail_after(PATIENCE):
            while not (result := wanted()):
                await self._news.wait()
        return result

    async def welcomed(self) -> None:
        await self.until(lambda: Welcome(1) in self.received)

    async def lent(self, vm: str) -> FakeStream:
        """The stream of the microphone that a VM gets, once the agent has given it."""
        found: FakeStream = await self.until(
            lambda: next((s for s in self._of(Lend) if s.message.vm == vm), None)
        )
        return found

    async def borrowed(self) -> FakeStream:
        found: FakeStream = await self.until(lambda: next(self._of(Borrow), None))
        return found

    def _of(self, kind: type[Any]) -> Any:
        alive = (each for each in self.streams.values() if not each.is_closed)
        return (each for each in alive if isinstance(each.message, kind))

    def listens(self, stream: FakeStream, yes: bool = True) -> None:
        self.send(Listening(stream.id, yes))

    def close(self) -> None:
        """End as a killed process does: all that it had is closed."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        for each in self.streams.values():
            each.close()
