"""What the gates of sound measure in: VMs of local mode, with each pair of sound servers.

Two VMs speak (`pw`, `pa`), three listen (`pw-ear`, `pa-ear`, and `third`). Servers and pedos-sound
get real-time priority if that is allowed here, as rtkit gives it to those of a desktop.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.e2e.system import process_table
from tests.sound import house as houses
from tests.sound.house import House

SPEAK = {"PipeWire": "pw", "PulseAudio": "pa"}
HEAR = {"PipeWire": "pw-ear", "PulseAudio": "pa-ear"}
THIRD = "third"
# What the prototypes were measured with: above all that is not real-time, below the kernel's own.
PRIORITY = 20

_PROGRAMS = {"pipewire", "pipewire-pulse", "wireplumber", "pulseaudio", "pedos-sound"}


@dataclass(frozen=True)
class Pairs:
    """The running VMs; `realtime` says whether the figures were taken with that priority."""

    house: House
    realtime: bool

    @property
    def how(self) -> str:
        """For the table: figures without real-time priority mean less."""
        return "rt" if self.realtime else "no rt"


@contextlib.contextmanager
def pairs(env: dict[str, str] | None = None) -> Iterator[Pairs]:
    """RuntimeError if something that it takes is not installed. `env` is added to the environment
    of the machine, and so of pedos-sound."""
    if (why := houses.why_not()) is not None:
        raise RuntimeError(f"{why}; try: tools/setup test")
    text = f'{houses.toml()}\n[vm.{THIRD}]\nsound = "pipewire"\n'
    with houses.house(text, env) as house:
        yield Pairs(house, _give_priority(house))


def _give_priority(house: House) -> bool:
    """To every program of the VMs' sound, and so to the threads that they start later."""
    table = process_table()
    sessions = set(house.processes("pedos_dom0.local.sound_session", table=table))
    speakers = set(house.processes("pedos-sound", table=table))
    allowed = True
    for pid, (parent, argv) in table.items():
        ours = pid in speakers or (parent in sessions and argv and argv[0] in _PROGRAMS)
        if ours:
            command = ["chrt", "--all-tasks", "--rr", "--pid", str(PRIORITY), str(pid)]
            done = subprocess.run(command, capture_output=True, check=False)
            allowed = allowed and done.returncode == 0
    return allowed
