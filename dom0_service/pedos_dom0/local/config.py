"""pedos.toml: which VMs there are. A mistake is an error with file, line, key and what is right.

[machine]
restarts = 5           # of one program within ten seconds; it is given up when it dies once more

[dom0]
verbose = false        # more in log/dom0.log
sound = "session"      # the sound server of the user who runs this, with the real microphone

[vm.work]
autostart = true       # started with the machine (the default)
verbose = false        # more in log/work.log
sound = "pipewire"     # a sound server of its own; or "pulseaudio", or "session"
microphone = true      # its server has a microphone, which hears what is played into it
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedos_protocol.names import parse_vm_name

from pedos_dom0.local.sound_server import KINDS, SESSION
from pedos_dom0.local.supervise import RESTARTS
from pedos_dom0.vms import toml_lines
from pedos_dom0.vms.toml_lines import kind_of

# More than this is a mistake of a generator: each VM is a process of about 30 MiB here.
VMS_MAX = 64
# A file of a page or two; bounded because it is read whole.
CONFIG_MAX = 256 * 1024
# So many deaths in ten seconds are those of a program that cannot even start.
RESTARTS_MAX = 1000

_EXAMPLE = "a VM is a table of its own, for example:  [vm.work]"


class ConfigError(Exception):
    """pedos.toml cannot be used. `str()` is "FILE:LINE: KEY: error; correction"."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What a VM, or dom0, can lend and hear microphones with."""

    kind: str  # one of sound_server.KINDS, or SESSION
    microphone: bool = False


@dataclass(frozen=True, slots=True)
class VmConfig:
    name: str
    autostart: bool = True
    verbose: bool = False
    sound: Sound | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """`vms` in the order of the file, which is the order in which they start."""

    vms: tuple[VmConfig, ...]
    dom0_verbose: bool = False
    restarts: int = RESTARTS
    dom0_sound: Sound | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(vm.name for vm in self.vms)

    @property
    def sounds(self) -> dict[str, Sound]:
        """dom0 and the VMs that have sound."""
        every = {"dom0": self.dom0_sound, **{vm.name: vm.sound for vm in self.vms}}
        return {name: sound for name, sound in every.items() if sound is not None}


def load(path: Path) -> Config:
    """ConfigError for every error of the file except its absence (FileNotFoundError)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > CONFIG_MAX:
        raise ConfigError(f"{path}: is {len(data)} bytes long; at most {CONFIG_MAX} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8; save it as UTF-8 text") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """The whole file as text; ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_toml_message(error, text, path)) from error
    return _Reader(text, path).read(document)


def _toml_message(error: tomllib.TOMLDecodeError, text: str, path: Path) -> str:
    line, column, message = toml_lines.syntax_error(error, text)
    place = f"{line}" if column is None else f"{line}:{column}"
    return f"{path}:{place}: not valid TOML: {message}"


class _Reader:
    """One file being read: it knows the places of keys, for the errors."""

    def __init__(self, text: str, path: Path) -> None:
        self._lines = toml_lines.Lines(text)
        self._path = path

    def read(self, document: dict[str, Any]) -> Config:
        for key in document:
            if key not in ("machine", "dom0", "vm"):
                right = f'only "machine", "dom0" and "vm" are known here; {_EXAMPLE}'
                raise self._error((key,), f"unknown key; {right}")
        machine = self._table(document.get("machine", {}), ("machine",), {"restarts": _restarts})
        known = {"verbose": _flag, **_SOUND}
        dom0 = self._table(document.get("dom0", {}), ("dom0",), known)
        vms = document.get("vm")
        if vms is None:
            raise ConfigError(f"{self._path}: vm: no VM is defined; {_EXAMPLE}")
        if not isinstance(vms, dict):
            raise self._error(("vm",), f"must be a table of VMs, not {kind_of(vms)}; {_EXAMPLE}")
        if not vms:
            raise self._error(("vm",), f"no VM is defined; {_EXAMPLE}")
        if len(vms) > VMS_MAX:
            raise self._error(("vm",), f"{len(vms)} VMs; at most {VMS_MAX} fit on one machine here")
        return Config(
            vms=tuple(self._vm(name, table) for name, table in vms.items()),
            dom0_verbose=dom0.get("verbose", False),
            restarts=machine.get("restarts", RESTARTS),
            dom0_sound=self._sound(dom0, ("dom0",)),
        )

    def _vm(self, name: str, untrusted_table: object) -> VmConfig:
        where = ("vm", name)
        try:
            parse_vm_name(name)
        except ValueError as error:
            raise self._error(where, str(error)) from error
        if name.lower() == "dom0":
            raise self._error(where, "dom0 is always there; its own table is [dom0]")
        known = {"autostart": _flag, "verbose": _flag, **_SOUND}
        table = self._table(untrusted_table, where, known)
        return VmConfig(
            name,
            autostart=table.get("autostart", True),
            verbose=table.get("verbose", False),
            sound=self._sound(table, where),
        )

    def _sound(self, table: Mapping[str, Any], where: tuple[str, ...]) -> Sound | None:
        kind, microphone = table.get("sound"), table.get("microphone", False)
        if microphone and kind not in KINDS:
            servers = " or ".join(f'sound = "{each}"' for each in KINDS)
            raise self._error(
                (*where, "microphone"), f"is part of a sound server of its own; add {servers}"
            )
        return None if kind is None else Sound(kind, microphone)

    def _table(
        self,
        value: object,
        where: tuple[str, ...],
        known: Mapping[str, Callable[[object], str | None]],
    ) -> dict[str, Any]:
        """A table of known keys with valid values; `known` tells what is wrong with one."""
        if not isinstance(value, dict):
            header = ".".join(where)
            raise self._error(where, f"must be a table, not {kind_of(value)}; write [{header}]")
        for key, item in value.items():
            if key not in known:
                raise self._error((*where, key), f"unknown key; known here: {', '.join(known)}")
            wrong = known[key](item)
            if wrong is not None:
                raise self._error((*where, key), wrong)
        return value

    def _error(self, where: tuple[str, ...], message: str) -> ConfigError:
        line = self._lines.of(where)
        place = f"{self._path}:{line}" if line else str(self._path)
        return ConfigError(f"{place}: {toml_lines.shown_key(where)}: {message}")


def _flag(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    return f"must be true or false (without quotes), not {kind_of(value)}"


def _sound_kind(value: object) -> str | None:
    kinds = ", ".join(f'"{kind}"' for kind in (*KINDS, SESSION))
    if not isinstance(value, str):
        return f"must be one of {kinds}, not {kind_of(value)}"
    return None if value in (*KINDS, SESSION) else f"must be one of {kinds}, not {value!a:.64}"


# The keys of a VM's sound, and of dom0's.
_SOUND = {"sound": _sound_kind, "microphone": _flag}


def _restarts(value: object) -> str | None:
    right = f"must be a whole number from 0 to {RESTARTS_MAX}"
    if not isinstance(value, int) or isinstance(value, bool):
        return f"{right}, not {kind_of(value)}"
    return None if 0 <= value <= RESTARTS_MAX else f"{right}, not {value}"
