"""Sound servers of one test: PipeWire with its session manager and its PulseAudio, or PulseAudio.

They are the ones of local mode (pedos_dom0.local.sound_server): each with a runtime folder, a home
and a bus of its own, and without hardware. Several run at once, as root too.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_dom0.local.sound_server import KINDS, TOOLS, SoundServer
from pedos_dom0.local.sound_session import REFUSED

from tests.e2e.system import wait_ready, wait_until
from tests.patience import PATIENCE

_started = itertools.count()
_CLIENTS = {"pacat": "pulseaudio-utils", "parec": "pulseaudio-utils"}


def lacking(*kinds: str) -> str | None:
    """Why servers of these kinds cannot be tested here, or None."""
    tools = dict(_CLIENTS)
    for kind in kinds:
        tools.update(TOOLS[kind])
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    return f"not installed: {' '.join(missing)}" if missing else None


def needs(*kinds: str) -> pytest.MarkDecorator:
    """Skips a test where programs of these kinds are not installed."""
    why = lacking(*kinds)
    return pytest.mark.skipif(why is not None, reason=why or "")


each_kind = [pytest.param(kind, marks=needs(kind)) for kind in KINDS]
each_pair = [
    pytest.param(source, target, marks=needs(source, target), id=f"{source}-{target}")
    for source in KINDS
    for target in KINDS
]


class Server:
    """One server, from outside: what `pactl` says of it. `reached` is what its clients need."""

    def __init__(self, kind: str, reached: dict[str, str]) -> None:
        self.kind = kind
        self._reached = reached

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self._reached}

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def pactl(self, *words: str) -> str:
        """What `pactl` prints; AssertionError if it fails."""
        while True:
            done = self.run("pactl", *words)
            if done.returncode == 0:
                return done.stdout
            assert REFUSED in done.stderr, f"pactl {words}: {done.stderr}"
            self.has_room()

    def has_room(self) -> None:
        """Returns when the server takes a connection: a busy one refuses what it has no room for
        (sound_session.REFUSED). AssertionError if none listens, or not in time."""
        path = self._reached["PULSE_SERVER"].removeprefix("unix:")
        with socket.socket(socket.AF_UNIX) as probe:
            # Python's own time-out would have the kernel refuse instead of wait, as libpulse has.
            bound = struct.pack("ll", PATIENCE, 0)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
            try:
                probe.connect(path)
            except OSError as error:
                raise AssertionError(f"no sound server at {path}: {error}") from error

    def listed(self, what: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self.pactl("-f", "json", "list", what))
        return listed

    def sources(self) -> list[str]:
        """The names of what can be recorded, without monitors."""
        names = [str(each["name"]) for each in self.listed("sources")]
        return [name for name in names if not name.endswith(".monitor")]

    def default_source(self) -> str:
        return self.pactl("get-default-source").strip()

    def recording(self, source: str) -> list[dict[str, Any]]:
        """The streams that record this source now."""
        index = next(
            (each["index"] for each in self.listed("sources") if each["name"] == source), None
        )
        return [_stream(each) for each in self.listed("source-outputs") if each["source"] == index]

    def playing(self) -> list[dict[str, Any]]:
        """The streams that play something now."""
        return [_stream(each) for each in self.listed("sink-inputs")]

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what)


def _stream(listed: dict[str, Any]) -> dict[str, Any]:
    properties = listed["properties"]
    return {
        "pid": int(properties.get("application.process.id", 0)),
        "program": properties.get("application.process.binary", ""),
        "name": properties.get("media.name", ""),
        "corked": listed["corked"],
    }


class OwnServer(Server):
    """A server that the test itself has started."""

    def __init__(self, described: SoundServer, child: subprocess.Popen[bytes]) -> None:
        super().__init__(described.kind, described.inside())
        self.described = described
        self.child = child

    def programs(self) -> dict[str, int]:
        """The pids of its programs, by their names."""
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text()
        found = {}
        for pid in children.split():
            with contextlib.suppress(OSError):
                found[Path(f"/proc/{pid}/comm").read_text().strip()] = int(pid)
        return found


@contextlib.contextmanager
def sound_server(
    kind: str, folder: Path, *, microphone: bool = False, prefix: tuple[str, ...] = ()
) -> Iterator[OwnServer]:
    """A server in a folder that is made for it. It answers when this yields, and is gone after.

    `prefix` is put before its command, as ("chrt", "-r", "20").
    """
    described = SoundServer(kind, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    address = f"\0pedos-test-sound-{os.getpid()}-{next(_started)}"
    # As all of the tests' programs it must not outlive a killed test.
    command = [*prefix, "setpriv", "--pdeathsig", "KILL", sys.executable, "-P"]
    module = ["-m", "pedos_dom0.local.sound_session", *["--microphone"][: int(microphone)]]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("ab") as output:
        ready.bind(address)
        child = subprocess.Popen(
            [*command, *module, kind, str(folder)],
            env={**os.environ, "NOTIFY_SOCKET": f"@{address[1:]}"},
            stdout=output,
            stderr=output,
        )
        try:
            try:
                wait_ready(ready, child)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{log.read_text()}") from None
            try:
                yield OwnServer(described, child)
            except BaseException:
                print(f"{log.name}, {child.poll()}:\n{log.read_text(errors='replace')}")
                raise
        finally:
            child.terminate()
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
