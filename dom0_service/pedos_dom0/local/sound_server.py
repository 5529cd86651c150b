"""The sound server of one VM in local mode: its folder, its programs, and how to reach it.

A desktop has one server a user. Local mode has one a VM, all of the same user: each has a folder of
its own as XDG_RUNTIME_DIR and HOME, and a bus of its own. None of them touches a sound card or a
Bluetooth device, because the session of the user who runs local mode has them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PIPEWIRE, PULSEAUDIO = "pipewire", "pulseaudio"
# Not a server of its own but that of the user who runs local mode, with the real microphone.
SESSION = "session"
KINDS = (PIPEWIRE, PULSEAUDIO)

# The programs of each kind, and the Debian package of each.
TOOLS = {
    PIPEWIRE: {
        "dbus-daemon": "dbus-daemon",
        "pipewire": "pipewire",
        "wireplumber": "wireplumber",
        "pipewire-pulse": "pipewire-pulse",
        "pactl": "pulseaudio-utils",
    },
    PULSEAUDIO: {"pulseaudio": "pulseaudio", "pactl": "pulseaudio-utils"},
    SESSION: {},
}

# What is played into this sink is what the VM's microphone hears. The source is not the sink's own
# monitor, because monitors are not microphones and are never lent.
MICROPHONE = "microphone"
MICROPHONE_INPUT = "into_microphone"

# The longest path of a Unix socket, see unix(7). The servers bind theirs by the whole path.
SOCKET_PATH_MAX = 107

# Nothing is activated on this bus: it must not start programs of the desktop.
_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
# WirePlumber 0.4 (Debian 12) reads Lua, 0.5 (Debian 13) the other one.
_WIREPLUMBER_04 = {
    "main.lua.d/90-no-hardware.lua": (
        "alsa_monitor.enabled = false\n"
        "v4l2_monitor.enabled = false\n"
        "libcamera_monitor.enabled = false\n"
    ),
    "bluetooth.lua.d/90-no-hardware.lua": "bluez_monitor.enabled = false\n",
}
_WIREPLUMBER_05 = {
    "wireplumber.conf.d/90-no-hardware.conf": (
        "wireplumber.profiles = {\n"
        "  main = {\n"
        "    hardware.audio = disabled\n"
        "    hardware.bluetooth = disabled\n"
        "    hardware.video-capture = disabled\n"
        "  }\n"
        "}\n"
    ),
}
# What Debian's default.pa loads, without what looks for hardware.
_PULSEAUDIO = """\
.fail
load-module module-device-restore
load-module module-stream-restore
load-module module-native-protocol-unix
load-module module-default-device-restore
load-module module-always-sink
load-module module-suspend-on-idle
"""


@dataclass(frozen=True, slots=True)
class SoundServer:
    """`folder` is absolute and of this server alone; nothing in it outlives a start."""

    kind: str  # one of KINDS
    folder: Path

    @property
    def runtime(self) -> Path:
        return self.folder / "rt"  # short: the path of a socket may not be long

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bus(self) -> Path:
        return self.runtime / "bus"

    @property
    def pipewire_socket(self) -> Path:
        return self.runtime / "pipewire-0"

    @property
    def pulse_socket(self) -> Path:
        return self.runtime / "pulse" / "native"

    def too_long(self) -> str | None:
        """Why no server can live there, or None: the kernel's bound on a socket's path."""
        # The longest one, of PipeWire 1.4.
        longest = len(os.fsencode(self.runtime / "pipewire-0-manager"))
        if longest <= SOCKET_PATH_MAX:
            return None
        return (
            f"the path {self.runtime} is {longest - SOCKET_PATH_MAX} bytes too long for the sockets"
            " of a sound server"
        )

    def reached_by(self) -> dict[str, str]:
        """What a client's environment needs; its own HOME and XDG_RUNTIME_DIR may stay."""
        reached = {"PULSE_SERVER": f"unix:{self.pulse_socket}"}
        if self.kind == PIPEWIRE:
            reached["PIPEWIRE_RUNTIME_DIR"] = str(self.runtime)
        else:  # no program may take the server of the desktop for that of this VM
            reached["PIPEWIRE_RUNTIME_DIR"] = str(self.runtime / "no-pipewire")
        return reached

    def inside(self) -> dict[str, str]:
        """What a program of this session has in addition."""
        return {
            **self.reached_by(),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.bus}",
        }

    def environment(self) -> dict[str, str]:
        """The whole environment of the server: nothing of the desktop's."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            **self.inside(),
        }

    def files(self) -> dict[Path, str]:
        """What must stand in the folder before a start."""
        if self.kind == PULSEAUDIO:
            return {self.home / "server.pa": _PULSEAUDIO}
        wireplumber = self.home / ".config" / "wireplumber"
        both = {**_WIREPLUMBER_04, **_WIREPLUMBER_05}
        return {
            self.home / "bus.conf": _BUS.format(address=f"unix:path={self.bus}"),
            **{wireplumber / name: text for name, text in both.items()},
        }

    def steps(self) -> list[tuple[list[str], Path | None]]:
        """The programs in the order of their starts, and the socket that each must serve before
        the next one starts."""
        if self.kind == PULSEAUDIO:
            options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
            file = f"--file={self.home / 'server.pa'}"
            return [(["pulseaudio", *options, file], self.pulse_socket)]
        bus = ["dbus-daemon", f"--config-file={self.home / 'bus.conf'}", "--nofork"]
        return [
            (bus, self.bus),
            (["pipewire"], self.pipewire_socket),
            (["wireplumber"], None),
            (["pipewire-pulse"], self.pulse_socket),
        ]


def microphone() -> list[list[str]]:
    """The commands that give a server a microphone into which programs can play."""
    form = ["rate=48000", "channels=1", "channel_map=mono"]
    return [
        [
            *("pactl", "load-module", "module-null-sink", f"sink_name={MICROPHONE_INPUT}", *form),
            "sink_properties=device.description=Into_the_microphone",
        ],
        [
            *("pactl", "load-module", "module-remap-source", f"source_name={MICROPHONE}"),
            *(f"master={MICROPHONE_INPUT}.monitor", *form[1:]),
            "source_properties=device.description=Microphone",
        ],
    ]
