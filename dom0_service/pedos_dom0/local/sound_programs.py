"""The programs of local mode that give its VMs sound: a server, and pedos-sound beside the agent.

pedos.toml            in the VM                                        speaks to
sound = "pipewire"    a server of its own, pedos-sound                 its own server
sound = "session"     pedos-sound                                      the server of this user
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from pedos_dom0.local.sound_server import KINDS, PIPEWIRE, SESSION, TOOLS, SoundServer
from pedos_dom0.local.supervise import Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_dom0.local.config import Sound
    from pedos_dom0.local.layout import Layout

PEDOS_SOUND = "pedos-sound"


def find_pedos_sound() -> str | None:
    """The program of this installation, before one that is installed elsewhere."""
    beside = os.path.dirname(sys.executable)
    return shutil.which(PEDOS_SOUND, path=beside) or shutil.which(PEDOS_SOUND)


def installed_kind() -> str:
    """The kind of server of which everything is installed; if there is none, the usual one."""
    for kind in KINDS:
        if all(shutil.which(tool) is not None for tool in TOOLS[kind]):
            return kind
    return PIPEWIRE


def has_session() -> bool:
    """Does a sound server of this user listen, as on a desktop?"""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return bool(runtime) and any(
        os.path.exists(os.path.join(runtime, socket)) for socket in ("pulse/native", "pipewire-0")
    )


def problems(layout: Layout, sounds: Mapping[str, Sound]) -> list[str]:
    """Why the VMs (or dom0) with sound cannot have it here: one text of lines for each reason."""
    if not sounds:
        return []
    needed: dict[str, str] = {}
    for sound in sounds.values():
        needed.update(TOOLS[sound.kind])
    missing = {tool: package for tool, package in needed.items() if shutil.which(tool) is None}
    found = []
    if find_pedos_sound() is None:
        if os.path.lexists(os.path.join(os.path.dirname(sys.executable), PEDOS_SOUND)):
            found.append(f"{PEDOS_SOUND} is not built in this checkout\n  try:  make sound")
        else:
            missing[PEDOS_SOUND] = PEDOS_SOUND
    if missing:
        users = ", ".join(sounds)
        found.append(
            f"not installed: {', '.join(missing)}, which the sound of {users} needs\n"
            f"  try:  apt-get install --no-install-recommends "
            f"{' '.join(sorted(set(missing.values())))}\n"
            f'  or:   remove the lines "sound = ..." from {layout.config}'
        )
    for name, sound in sounds.items():
        if sound.kind == SESSION:
            if not os.environ.get("XDG_RUNTIME_DIR"):
                found.append(
                    f'{name} has sound = "session", but this user has no session here: '
                    "XDG_RUNTIME_DIR is not set\n"
                    "  try:  pedos-local as the user of the desktop, in a terminal of it"
                )
        elif (problem := SoundServer(sound.kind, layout.sound(name)).too_long()) is not None:
            found.append(f"{name}: {problem}\n  try:  a folder with a shorter path")
    return found


def programs(layout: Layout, name: str, sound: Sound, *, verbose: bool) -> list[Program]:
    """In the order of their starts. The name of a program cannot be one of a VM's agent, because
    VMs have no dots in their names."""
    found = []
    env: dict[str, str] = {}
    if sound.kind != SESSION:
        server = SoundServer(sound.kind, layout.sound(name))
        env = server.inside()
        argv = [sys.executable, "-P", "-m", "pedos_dom0.local.sound_session"]
        argv += [*(["--microphone"] if sound.microphone else []), sound.kind, str(server.folder)]
        log = layout.log(f"{name}.sound-server")
        found.append(Program(f"{name}.sound-server", argv, log))
    program = find_pedos_sound() or PEDOS_SOUND
    argv = [program, "--socket", str(layout.sound_socket(name))]
    argv += ["--verbose"] if verbose else []
    found.append(Program(f"{name}.sound", argv, layout.log(f"{name}.sound"), env=env))
    return found


def environment(layout: Layout, name: str, sound: Sound | None) -> dict[str, str]:
    """What a command that runs in the VM needs to hear, and to play into, the VM's own server. Its
    display stays that of the user, and so a browser can be tried in a VM."""
    if sound is None or sound.kind == SESSION:
        return {}
    return SoundServer(sound.kind, layout.sound(name)).reached_by()
