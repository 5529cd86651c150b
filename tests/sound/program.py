"""pedos-sound under test: built with sanitizers, with a test in the place of its agent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pedos_protocol import sound_frames as frames
from pedos_protocol import sound_link as link

from tests.compiled import sanitized
from tests.patience import PATIENCE

from .servers import Server

ROOT = Path(__file__).parents[2]
MIC = "mic"
SOCKET_BYTES = 8192  # as the agent has them
T = TypeVar("T")


class Channel:
    """The agent's end of a data channel: what the other VM says and hears."""

    def __init__(self, end: socket.socket, other: str) -> None:
        self.socket = end
        self._other = other
        self._raw = bytearray()
        self.frames: list[frames.Frame] = []

    def say(self, *said: frames.Frame) -> None:
        self.socket.sendall(b"".join(map(frames.build, said)))

    def start(self) -> None:
        self.say(frames.Frame(frames.START))

    def stop(self) -> None:
        self.say(frames.Frame(frames.STOP))

    def read(self, timeout: float = 0.0) -> list[frames.Frame]:
        """The frames that have come, or come within that time."""
        if not select.select([self.socket], [], [], timeout)[0]:
            return []
        self._raw += self.socket.recv(1 << 16)
        return frames.take(self._raw, self._other)

    def await_frame(self, kind: int) -> frames.Frame:
        """The next frame of this kind; those before it are dropped."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for frame in self.read(0.1):
                if frame.type == kind:
                    return frame
        raise AssertionError(f"no frame of type {kind} came")

    def hear(self, seconds: float) -> bytes:
        """That many seconds of sound, from now on. SILENCE is heard as such."""
        while self.read():
            pass
        heard = bytearray()
        deadline = time.monotonic() + PATIENCE
        while len(heard) < 2 * seconds * frames.RATE:
            assert time.monotonic() < deadline, f"only {len(heard)} bytes came"
            for frame in self.read(0.1):
                silent = frame.type == frames.SILENCE
                heard += bytes(2 * frame.samples) if silent else frame.rest
        return bytes(heard)

    def until(self, what: str, heard: Callable[[bytes], bool]) -> None:
        """Returns once a quarter of a second satisfies `heard` (has_tone, is_silent)."""
        deadline = time.monotonic() + PATIENCE
        while not heard(self.hear(0.25)):
            assert time.monotonic() < deadline, f"never: {what}"

    def close(self) -> None:
        self.socket.close()


class Agent:
    """What an agent is to pedos-sound: the other end of its link."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(path))
        self._listening.listen()
        self._listening.settimeout(PATIENCE)
        self._link: socket.socket | None = None
        self._ids = 0
        self.said: list[link.Message] = []
        self._channels: list[Channel] = []

    def close(self) -> None:
        self.hang_up()
        self._listening.close()
        self.path.unlink()

    def hang_up(self) -> None:
        """As an agent that ends: with it go all channels."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        if self._link is not None:
            self._link.close()
        self._link = None
        self.said.clear()

    def accept(self) -> link.Hello:
        self._link, _ = self._listening.accept()
        hello = self.await_message(link.Hello)
        self.send(link.Welcome(link.VERSION))
        return hello

    def refuse(self, why: str) -> None:
        """The next one that comes."""
        self._link, _ = self._listening.accept()
        self.await_message(link.Hello)
        self.send(link.Refused(why))
        self.await_end()

    def is_connected(self) -> bool:
        self._poll(0.0)
        return self._link is not None

    def send(self, message: link.Message, *descriptors: int) -> None:
        self.send_raw(link.build(message), *descriptors)

    def send_raw(self, raw: bytes, *descriptors: int) -> None:
        assert self._link is not None
        socket.send_fds(self._link, [raw], list(descriptors))

    def _poll(self, timeout: float) -> None:
        if self._link is None or not select.select([self._link], [], [], timeout)[0]:
            return
        try:
            raw = self._link.recv(link.DATAGRAM_MAX + 1)
        except ConnectionResetError:
            raw = b""
        if raw:
            self.said.append(link.parse(raw, link.SESSION))
        else:
            self._link.close()
            self._link = None

    def await_message(self, kind: type[T], condition: Callable[[T], bool] = lambda _: True) -> T:
        """The first message of this kind that satisfies the condition; it is taken out."""
        deadline = time.monotonic() + PATIENCE
        seen = 0
        while True:
            for place in range(seen, len(self.said)):
                message = self.said[place]
                if isinstance(message, kind) and condition(message):
                    del self.said[place]
                    return message
            seen = len(self.said)
            assert time.monotonic() < deadline, f"no such {kind.__name__}: {self.said}"
            assert self._link is not None, f"the link is closed: {self.said}"
            self._poll(0.1)

    def await_server(self) -> None:
        self.await_message(link.Server, lambda said: said.state == "")

    def await_device(self, id_: str = MIC) -> link.Device:
        """This device, once it is listed."""

        def has(said: link.Devices) -> bool:
            return any(each.id == id_ for each in said.devices)

        said = self.await_message(link.Devices, has)
        return next(each for each in said.devices if each.id == id_)

    def await_end(self) -> None:
        """Until the program gives up the link."""
        deadline = time.monotonic() + PATIENCE
        while self.is_connected():
            assert time.monotonic() < deadline, "the link stays"
            self._poll(0.1)

    def _stream(
        self, make: Callable[[int], link.Message], other: str, room: int = SOCKET_BYTES
    ) -> tuple[int, Channel]:
        self._ids += 1
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
            self.send(make(self._ids), theirs.fileno())
        channel = Channel(ours, other)
        self._channels.append(channel)
        return self._ids, channel

    def lend(
        self,
        vm: str = "work",
        device: str = MIC,
        identity: str = "default",
        *,
        muted: bool = False,
        is_ready: bool = True,
        room: int = SOCKET_BYTES,
    ) -> tuple[int, Channel]:
        id_, channel = self._stream(
            lambda id_: link.Lend(id_, device, identity, vm, muted), frames.SOURCE, room
        )
        if is_ready:
            self.await_message(link.Ready, lambda said: said.id == id_)
        return id_, channel

    def borrow(
        self, vm: str = "work", device: str = MIC, description: str = "", *, is_ready: bool = True
    ) -> tuple[int, Channel]:
        id_, channel = self._stream(
            lambda id_: link.Borrow(id_, vm, device, description), frames.TARGET
        )
        if is_ready:
            self.await_message(link.Ready, lambda said: said.id == id_)
        return id_, channel

    def await_ended(self, id_: int) -> str:
        return self.await_message(link.Ended, lambda said: said.id == id_).why

    def await_listening(self, id_: int, is_listening: bool) -> None:
        self.await_message(
            link.Listening, lambda said: (said.id, said.is_listening) == (id_, is_listening)
        )


class Program:
    """A pedos-sound that runs."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path) -> None:
        self.child = child
        self.log = log

    @property
    def pid(self) -> int:
        return self.child.pid

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> None:
        """In order; a sanitizer's report is a failure."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            status = self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"it does not end:\n{self.log.read_text()}") from None
        assert status in (0, -signal.SIGKILL), self.log.read_text()


@contextlib.contextmanager
def running(
    server: Server, socket_path: Path, program: Path | None = None, *arguments: str
) -> Iterator[Program]:
    """pedos-sound in the server's session."""
    log = socket_path.with_suffix(f".{time.monotonic_ns()}.log")
    environment = {
        **server.environment(),
        # libpulse keeps some things until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = ["setpriv", "--pdeathsig", "KILL", program or sanitized("sound") / "pedos-sound"]
    command += ["--socket", socket_path, "--verbose", *arguments]
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=environment, stderr=output)
    started = Program(child, log)
    try:
        yield started
    except BaseException:
        child.kill()
        child.wait()
        print(log.read_text())
        raise
    started.end()


def processor_seconds(pid: int) -> float:
    """What the process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
