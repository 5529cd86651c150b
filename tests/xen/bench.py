"""Boots the bench and runs things inside: Xen, dom0 and guests in one emulated machine.

    with Bench(image) as bench:
        bench.boot("sys-usb")
        result = bench.run("sys-usb", "uname -a")

The console of Xen and dom0 goes to a file, the harness speaks to `inside/bench-link` over a second
serial port. QEMU ends with this process, whatever happens to it, and at the deadline.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import itertools
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from . import image as images
from .machine import Sockets, command
from .qmp import Qmp, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .image import Image

T = TypeVar("T")

BOOT_LIMIT = 600.0  # seconds until dom0's toolstack is up; 25 to 40 are usual
START_LIMIT = 180.0  # of one guest, until it answers; 20 to 30 are usual
RUN_LIMIT = 120.0  # of one command, unless the caller knows better
BENCH_LIMIT = 3600.0  # of one QEMU: a half of the tests takes 12 to 30 minutes
#: All limits are for a machine on which dom0 answers within this. One that is slower, or has other
#: work, gets as many times more.
USUAL_BOOT = 15.0
REPEAT = 2.0  # a request is sent again when there was no answer for so long
# A running command may take long and its answer may be lost, so now and then it is asked for again.
REPEAT_RUNNING = 20.0

DOM0_WEIGHT = 65535  # a guest has 256


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything, for a message."""
        return f"status {self.status}\n{self.out}{self.err}"

    def check(self) -> str:
        """Its output; AssertionError with everything if it failed."""
        assert self.status == 0, self.text
        return self.out


class BenchError(Exception):
    """The bench itself fails; the text has the end of the console."""


class _Request:
    def __init__(self, message: dict[str, object]) -> None:
        self.message = message
        self.running = False
        self.heard = threading.Event()
        self.answer: dict[str, object] | None = None


class Bench:
    """One booted machine."""

    def __init__(
        self, image: Image, folder: Path | None = None, *, limit: float = BENCH_LIMIT
    ) -> None:
        self._image = image
        self._limit = limit
        self.folder = folder or Path(tempfile.mkdtemp(prefix="bench-", dir=images.CACHE))
        self.folder.mkdir(exist_ok=True)
        self.sockets = Sockets(
            console=self.folder / "console.sock",
            console_log=self.folder / "console.log",
            link=self.folder / "link.sock",
            qmp=self.folder / "qmp.sock",
        )
        self.times: dict[str, float] = {}
        self._qemu: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._qmp: Qmp | None = None
        self._numbers = itertools.count(1)
        self._open: dict[str, _Request] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._timer: threading.Timer | None = None
        self._slowness = 1.0

    # ---- the machine ----

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def power_on(self) -> None:
        """Starts QEMU; returns when its sockets are there."""
        self._started = time.monotonic()
        with (self.folder / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(
                command(self._image, self.sockets),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._end_after(self._limit)
        self._link = link = socket.socket(socket.AF_UNIX)
        self._when_it_listens(lambda: link.connect(str(self.sockets.link)))
        self._qmp = self._when_it_listens(lambda: Qmp(self.sockets.qmp))
        threading.Thread(target=self._listen, daemon=True).start()

    def _when_it_listens(self, connect: Callable[[], T]) -> T:
        """What `connect` returns, once QEMU has made the socket."""
        assert self._qemu is not None
        while True:
            try:
                return connect()
            except (FileNotFoundError, ConnectionRefusedError):
                if self._qemu.poll() is not None:
                    raise BenchError((self.folder / "qemu.log").read_text()) from None
                time.sleep(0.05)
            except QmpError as error:
                raise BenchError(f"{error}\n{(self.folder / 'qemu.log').read_text()}") from None

    @property
    def qmp(self) -> Qmp:
        """QEMU itself, to plug and pull devices of dom0. After power_on."""
        assert self._qmp is not None
        return self._qmp

    def boot(self, *names: str) -> None:
        """Power on, and wait until dom0 and these guests have booted.

        The guests are made as soon as dom0's toolstack works, for dom0 is not done by far then.
        """
        self.power_on()
        self.run("dom0", "true", limit=BOOT_LIMIT)
        self._note("dom0 answers")
        self._slowness = max(1.0, self.times["dom0 answers"] / USUAL_BOOT)
        self._end_after(self._limit * self._slowness)
        wait = (
            "until systemctl is-active -q xen && xenstore-read -s / && xl list; do sleep 0.5; done"
        )
        self.run("dom0", f"({wait}) >/dev/null 2>&1", limit=BOOT_LIMIT).check()
        self._note("toolstack up")
        # Busy guests would otherwise keep dom0 from what libxl wants done within ten seconds.
        self.run("dom0", f"xl sched-credit2 -d Domain-0 -w {DOM0_WEIGHT}").check()
        with concurrent.futures.ThreadPoolExecutor() as threads:
            rest = threads.submit(self.wait_for_boot, "dom0")
            self.start(*names)
            rest.result()

    def start(self, *names: str) -> None:
        """`xl create` of the image's guests, one after the other; returns when all have booted.

        The next one is made while the last one boots: dom0 makes it, and has then nothing to do.
        """
        with concurrent.futures.ThreadPoolExecutor() as threads:
            booting = []
            for name in names:
                made = self.run("dom0", f"xl create /etc/xen/{name}.cfg", limit=START_LIMIT)
                made.check()
                self._note(f"{name} created")
                booting.append(threads.submit(self.wait_for_boot, name))
            for one in booting:
                one.result()

    def wait_for_boot(self, name: str) -> None:
        """Returns when everything has started in dom0, or in a guest that is there."""
        self.run(name, "true", limit=START_LIMIT).check()
        self.run(name, "systemctl is-system-running --wait", limit=START_LIMIT)
        self._note(f"{name} is done booting")

    def _note(self, what: str) -> None:
        self.times[what] = round(time.monotonic() - self._started, 1)
        self._log(what)

    def _log(self, what: str) -> None:
        """For whoever wonders what it does: commands.log in the bench's folder."""
        with self._lock, (self.folder / "commands.log").open("a") as log:
            log.write(f"{time.monotonic() - self._started:7.1f} {what}\n")

    def _end_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def _kill(self) -> None:
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.kill()

    def close(self) -> None:
        """Ends QEMU. The folder with the logs stays."""
        if self._timer is not None:
            self._timer.cancel()
        if self._qemu is not None:
            self._kill()
            self._qemu.wait()
        for connection in (self._link, self._qmp):
            if connection is not None:
                connection.close()

    # ---- what runs inside ----

    def run(self, where: str, script: str, *, given: str = "", limit: float = RUN_LIMIT) -> Result:
        """Runs a script with sh in dom0 or in a guest; given is its standard input.

        BenchError when the bench is gone or does not answer in time.
        """
        return self.run_argv(where, ["sh", "-c", script], given=given, limit=limit)

    def run_argv(
        self, where: str, argv: list[str], *, given: str = "", limit: float = RUN_LIMIT
    ) -> Result:
        """The same for a program and its arguments."""
        limit *= self._slowness
        number = f"{os.getpid()}-{next(self._numbers)}"
        request = _Request(
            {"id": number, "to": where, "argv": argv, "input": given, "limit": limit}
        )
        shown = " ".join(argv)[:200]
        self._log(f"{where} > {shown}")
        with self._lock:
            self._open[number] = request
        # Inside it is killed at the limit, and its output comes; this is for a bench that hangs.
        end = time.monotonic() + limit + 2 * REPEAT
        try:
            while request.answer is None:
                if time.monotonic() >= end:
                    raise BenchError(f"{where} does not answer: {argv}\n{self.console()}")
                self._send(request.message)
                self._wait(request, end)
        finally:
            with self._lock:
                del self._open[number]
        answer = request.answer
        self._log(f"{where} < {answer['status']} {shown}")
        return Result(int(str(answer["status"])), str(answer["out"]), str(answer["err"]))

    def _wait(self, request: _Request, end: float) -> None:
        """Until its answer is there, or it is time to send it again."""
        sent = time.monotonic()
        while request.answer is None:
            pause = REPEAT_RUNNING if request.running else REPEAT
            if time.monotonic() >= min(end, sent + pause):
                return
            request.heard.wait(1.0)
            request.heard.clear()
            self._must_run()

    def _must_run(self) -> None:
        if self._qemu is None or self._qemu.poll() is not None:
            raise BenchError(f"QEMU has ended\n{self.console()}")

    def console(self, most: int = 3000) -> str:
        """The end of what Xen and dom0 said."""
        try:
            return self.sockets.console_log.read_bytes()[-most:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _send(self, message: dict[str, object]) -> None:
        assert self._link is not None
        text = base64.b64encode(json.dumps(message).encode())
        try:
            self._link.sendall(b"\n@@ %08x %s\n" % (binascii.crc32(text), text))
        except OSError as error:
            raise BenchError(f"QEMU has ended ({error})\n{self.console()}") from None

    def _listen(self) -> None:
        assert self._link is not None
        held = b""
        while True:
            try:
                part = self._link.recv(65536)
            except OSError:
                return
            if not part:
                return
            *lines, held = (held + part).split(b"\n")
            for line in lines:
                self._heard(line)

    def _heard(self, line: bytes) -> None:
        _, mark, rest = line.strip().rpartition(b"@@ ")
        checksum, _, text = rest.partition(b" ")
        try:
            if not mark or int(checksum, 16) != binascii.crc32(text):
                return
            message = json.loads(base64.b64decode(text))
        except ValueError:
            return
        with self._lock:
            request = self._open.get(message.get("id"))
        if request is None or "argv" in message:
            return
        if "status" in message:
            request.answer = message
        request.running = True
        request.heard.set()


def show_times(bench: Bench) -> str:
    """One line for a log."""
    return ", ".join(f"{what} after {at:.0f} s" for what, at in bench.times.items())
