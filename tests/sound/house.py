"""A system of local mode whose VMs have sound: what tests and benchmarks hear through.

Four VMs, so that every pair of servers can be tried: two lend (`pw`, `pa`), each with a microphone
into which one can play, two listen (`pw-ear`, `pa-ear`) and have none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pedos_dom0.local.config import load
from pedos_dom0.local.layout import Layout, sweep
from pedos_dom0.local.sound_programs import find_pedos_sound
from pedos_dom0.local.sound_server import KINDS, MICROPHONE, SESSION, SoundServer

from tests.e2e.system import RESTARTS, LocalSystem, process_table, wait_until
from tests.patience import PATIENCE
from tests.sound.servers import Server, lacking

SHORT = {"pipewire": "pw", "pulseaudio": "pa"}


def lender(kind: str) -> str:
    """The VM that has a microphone, and a server of this kind."""
    return SHORT[kind]


def ear(kind: str) -> str:
    """The VM that listens with a server of this kind."""
    return f"{SHORT[kind]}-ear"


def toml(kinds: tuple[str, ...] = KINDS) -> str:
    tables = [f"[machine]\nrestarts = {RESTARTS}\n"]
    for kind in kinds:
        tables.append(f'[vm.{lender(kind)}]\nsound = "{kind}"\nmicrophone = true\n')
        tables.append(f'[vm.{ear(kind)}]\nsound = "{kind}"\n')
    return "\n".join(tables)


def why_not(*kinds: str) -> str | None:
    """Why no such system can run here, or None."""
    if (why := lacking(*(kinds or KINDS))) is not None:
        return why
    return None if find_pedos_sound() else "not built: pedos-sound (make sound)"


class House(LocalSystem):
    """The running system, and the sound servers of its VMs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.layout = Layout.of(folder)

    def init_with(self, text: str) -> None:
        self.init()
        self.layout.config.write_text(text)

    def server(self, vm: str) -> Server:
        sound = load(self.layout.config).sounds[vm]
        described = SoundServer(sound.kind, self.layout.sound(vm))
        return Server(sound.kind, described.inside())

    def wait_for_sound(self) -> None:
        """Returns when each microphone can be lent, and each server answers."""
        for vm, sound in load(self.layout.config).sounds.items():
            if sound.kind != SESSION:
                self.server_answers(vm)
            if sound.microphone:
                self.wait_until(lambda vm=vm: self.is_offered(vm), f"{vm}:mic is listed")

    def server_answers(self, vm: str) -> None:
        server = self.server(vm)
        wanted = MICROPHONE if load(self.layout.config).sounds[vm].microphone else ""

        def answers() -> bool:
            done = server.run("pactl", "list", "short", "sources")
            # Not the monitor of what plays into it, which is there before it.
            names = [line.split("\t")[1] for line in done.stdout.splitlines()]
            return done.returncode == 0 and (not wanted or wanted in names)

        self.wait_until(answers, f"{vm}'s sound server answers")

    def is_offered(self, vm: str) -> bool:
        """Is the VM's microphone listed, and could be lent?"""
        device = self.devices("mic").get(f"{vm}:mic")
        return device is not None and not device.get("busy")

    def holders(self, device: str) -> list[str]:
        """The VMs that have this microphone, as dom0 lists them."""
        attachments = self.devices("mic").get(device, {}).get("attachments", [])
        assert isinstance(attachments, list)
        return sorted(each["vm"] for each in attachments)

    def lend(self, source: str, target: str) -> str:
        """Attaches the source's microphone; the name that programs in the target record. The attach
        has waited for the sound server to list it, which tells each program in its own time."""
        self.ok("qvm-device", "mic", "attach", target, f"{source}:mic")
        name = f"pedos_mic.{source}"
        if load(self.layout.config).sounds[target].kind != SESSION:
            server = self.server(target)
            self.wait_until(lambda: name in server.sources(), f"{target} lists {name}")
        return name

    def take_back(self, source: str, target: str) -> None:
        self.ok("qvm-device", "mic", "detach", target, f"{source}:mic")

    def mute(self, vm: str, muted: bool) -> None:
        """dom0's user mutes the VM, or unmutes it; every source has confirmed it."""
        wanted = {"device_class": "mic", "vm": vm, "muted": muted}
        with self.client() as dom0:
            answer = dom0.call("device.mute", wanted, PATIENCE)
        assert not [each for each in answer["results"] if each.get("error")], answer

    def take_all_back(self) -> None:
        """Every microphone from every VM, in whatever state a test has left them."""
        for device in list(self.devices("mic")):
            for vm in self.holders(device):
                self.run("qvm-device", "mic", "detach", vm, device)

    def speaker(self, vm: str) -> int:
        """The pid of the VM's pedos-sound."""
        return self._one(lambda argv: str(self.layout.sound_socket(vm)) in argv, "pedos-sound")

    def session(self, vm: str) -> int:
        """The pid of the program that runs the VM's sound server."""
        return self._one(lambda argv: str(self.layout.sound(vm)) in argv, "python")

    def main_program(self, vm: str) -> int:
        """The pid of the VM's PipeWire or PulseAudio itself."""
        kind = load(self.layout.config).sounds[vm].kind
        session = self.session(vm)
        return next(
            pid
            for pid, (parent, argv) in process_table().items()
            if parent == session and argv and argv[0] == kind
        )

    def _one(self, ours: Callable[[list[str]], bool], program: str) -> int:
        found = [
            pid
            for pid, (_, argv) in process_table().items()
            if argv and argv[0].startswith(program) and ours(argv)
        ]
        assert len(found) == 1, f"{program}: {found}"
        return found[0]


@contextlib.contextmanager
def house(text: str | None = None, env: dict[str, str] | None = None) -> Iterator[House]:
    """A running house with this pedos.toml, and its end. Its folder has a short path, as a sound
    server's must."""
    with tempfile.TemporaryDirectory(prefix="snd-", ignore_cleanup_errors=True) as folder:
        local = House(Path(folder) / "h")
        local.init_with(toml() if text is None else text)
        try:
            local.up(env)
            local.wait_for_sound()
            yield local
        finally:
            if local.is_up:
                local.kill()
            wait_until(lambda: local.processes() == [], "the house's programs are gone")
            sweep(local.layout)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
