"""A keeper as a process, and an agent's side of its link, for tests."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pedos_host.plain_unix import bind_unix, short_path
from pedos_protocol.keeper_link import (
    KEEPER,
    PACKET_MAX,
    Finished,
    Kill,
    Killed,
    Packet,
    Run,
    Signal,
    build,
    parse,
)

from tests.patience import PATIENCE

T = TypeVar("T", bound=Packet)
CALL = "0123456789abcdef" * 2
_ids = itertools.count()


class Place:
    """The folders of a keeper in local mode, and its process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.services = root / "services.d"
        self.configurations = root / "services.conf.d"
        self.home = root / "home"
        self.path = root / "keeper.sock"
        self.guard = 0  # its process, while it runs
        for each in (self.services, self.configurations, self.home):
            each.mkdir()

    def service(self, name: str, script: str, *, first: str = "#!/bin/sh") -> Path:
        """A service that is a script of sh."""
        path = self.services / name
        path.write_text(f"{first}\n{script}\n" if first else f"{script}\n")
        path.chmod(0o755)
        return path

    def configure(self, name: str, *lines: str) -> Path:
        path = self.configurations / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    @contextlib.contextmanager
    def running(self, environment: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[bytes]]:
        """The keeper, until it is killed at the end."""
        with bind_unix(self.path, 0o600, kind=socket.SOCK_SEQPACKET) as listener:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "pedos_keeper"),
                    *("--services", str(self.services)),
                    *("--configurations", str(self.configurations)),
                    *("--listen", str(listener.fileno())),
                ],
                pass_fds=[listener.fileno()],
                env={**os.environ, "HOME": str(self.home), **environment},
            )
        self.guard = process.pid
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)

    def run(self, service: str, argument: str = "", **fields: Any) -> Called:
        """Call a service."""
        return Called(self.path, service, argument, **fields)

    def kill(self, call: str) -> None:
        """End what a call has left, and wait until that is done."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(PATIENCE)
            with short_path(self.path) as short:
                link.connect(short)
            link.send(build(Kill(call)))
            assert link.recv(PACKET_MAX) == build(Killed())


class Called:
    """A call, with the descriptors that an agent has of its service."""

    def __init__(
        self,
        path: Path,
        service: str,
        argument: str = "",
        *,
        source: str = "work",
        target: str = "",
        is_forced: bool = False,
        with_stderr: bool = True,
        call: str | None = None,
    ) -> None:
        """`call` is its id: another one each time, as dom0 gives them."""
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(PATIENCE)
        with short_path(path) as short:
            self.link.connect(short)
        self.stdin, stdin = socket.socketpair()
        self.stdout, stdout = socket.socketpair()
        stderr, theirs = os.pipe()
        self.stderr = os.fdopen(stderr, "rb")
        for each in (self.stdin, self.stdout):
            each.settimeout(PATIENCE)
        run = Run(call or f"{next(_ids):032x}", service, f"+{argument}", source, target, is_forced)
        passed = [stdin.fileno(), stdout.fileno(), *([theirs] if with_stderr else [])]
        with contextlib.suppress(BrokenPipeError):  # one that takes no more says so at once
            socket.send_fds(self.link, [build(run)], passed)
        stdin.close()
        stdout.close()
        os.close(theirs)
        self.passed: list[int] = []

    def __enter__(self) -> Called:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.link, self.stdin, self.stdout, self.stderr):
            each.close()
        for passed in self.passed:
            os.close(passed)

    def next(self, kind: type[T]) -> T:
        """The next packet, which is of that kind."""
        packet = self.packet()
        assert isinstance(packet, kind), packet
        return packet

    def packet(self) -> Packet | None:
        """The next packet; None at the end."""
        raw, passed, _, _ = socket.recv_fds(self.link, PACKET_MAX, 4)
        self.passed += passed
        return parse(raw, KEEPER) if raw else None

    def output(self, given: bytes = b"") -> bytes:
        """All that the service writes to its stdout, after its stdin was this and has ended."""
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            self.stdin.sendall(given)
            self.stdin.shutdown(socket.SHUT_WR)
        return read_all(self.stdout)

    def signal(self, number: int) -> None:
        self.link.send(build(Signal(int(number))))

    def finish(self) -> None:
        self.link.send(build(Finished()))


@contextlib.contextmanager
def not_answering(path: Path) -> Iterator[threading.Event]:
    """Who opens the file, or executes it, hangs until the end of this, as on a disk that does not
    answer: it has a lease (fcntl(2)), which the kernel ends after 45 s. In the main thread; the
    event says that somebody does."""
    is_asked = threading.Event()
    before = signal.signal(signal.SIGIO, lambda *_: is_asked.set())
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield is_asked
    finally:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(file)
        signal.signal(signal.SIGIO, before)


def read_all(connected: socket.socket) -> bytes:
    found = b""
    while more := connected.recv(65536):
        found += more
    return found


def wait_for_end(pid: int) -> None:
    """Until that process is no more, whoever's child it is."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), f"process {pid} goes on"
    finally:
        os.close(file)


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def keeper_below(guard: int) -> int:
    [keeper] = children_of(guard)
    return keeper


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """That process does nothing within."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # Its threads stop one after the other.
        while any(_state(each) not in "TX" for each in Path(f"/proc/{pid}/task").iterdir()):
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_there(pid: int) -> bool:
    """Whether that process is, and is no zombie."""
    return _state(Path(f"/proc/{pid}")) not in "ZX"


def _state(folder: Path) -> str:
    """The state of a process, or of a thread (proc(5)); X if it is no more."""
    try:
        return (folder / "stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
