"""The VMs that an administrator has configured for `xl`: FOLDER/NAME.cfg is the VM NAME."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pedos_protocol.names import harmless_text, is_vm_name

from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.policy.whole_file import read_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

SUFFIX = ".cfg"
# Bytes of a configuration; one with some hundred disks has a tenth of it. A longer one is refused.
CONFIG_MAX = 256 * 1024

# xl.cfg(5): NAME = "VALUE", with either kind of quote; of several the last one counts.
_NAME = re.compile(r"""^[ \t]*name[ \t]*=[ \t]*(["'])(.*?)\1""", re.MULTILINE)
_UUID = re.compile(r"""^[ \t]*uuid[ \t]*=[ \t]*(["'])(.*?)\1""", re.MULTILINE)
# A comment, or a text, in which # does not begin one.
_COMMENT = re.compile(r"""("[^"\n]*"|'[^'\n]*')|#[^\n]*""")

# disk = ["...", "..."], and in it the names of devices in the VM, with `vdev=` or by their
# position; a path before one belongs to its source (xl-disk-configuration(5)).
_DISKS = re.compile(r"^[ \t]*disk[ \t]*\+?=[ \t]*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_XVD = re.compile(r"(?<![\w/])xvd[a-z](?![\w/])")

# pci = ["...", "..."] (xl-pci-configuration(5)), and in it the addresses; the domain may be left
# out.
_PCI = re.compile(r"^[ \t]*pci[ \t]*\+?=[ \t]*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_BDF = re.compile(
    r"(?<![\w:])(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])(?![\w:])",
    re.IGNORECASE,
)

# It was just removed, or is a link that leads nowhere.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Config = tuple[Path, str | None]  # with the UUID that it gives its VM


class Configs:
    """The configured VMs of the folders, as last read.

    An error does not make a folder empty: what a folder had stays until it can be read again. A
    missing folder has none.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)
        self._read: dict[Path, dict[str, Config]] = {}
        self._unread: dict[Path, str] = dict.fromkeys(self.folders, "")  # and why

    @property
    def is_complete(self) -> bool:
        """Whether the present content of all folders is known."""
        return not self._unread

    @property
    def paths(self) -> dict[str, Path]:
        """Name -> configuration, of all VMs."""
        return {name: path for name, (path, _) in self._found().items()}

    @property
    def uuids(self) -> dict[str, str | None]:
        """Name -> UUID, of all VMs; None where the configuration gives none, or was never read."""
        return {name: uuid for name, (_, uuid) in self._found().items()}

    def _found(self) -> dict[str, Config]:
        """The folder named first wins."""
        found: dict[str, Config] = {}
        for folder in reversed(self.folders):
            found.update(self._read.get(folder, {}))
        return found

    def read(self) -> None:
        """Looks at the folders, which waits for the disk."""
        unread: dict[Path, str] = {}
        for folder in self.folders:
            try:
                self._read[folder] = _configured(folder, self._read.get(folder, {}), unread)
            except OSError as error:
                unread[folder] = str(error)
            if folder in unread and self._unread.get(folder) != unread[folder]:
                logger.warning(
                    "not all of %s can be read: %s; the VMs that were there when it could be are "
                    "taken to be there still",
                    folder,
                    unread[folder],
                )
        self._unread = unread


def _configured(
    folder: Path, before: dict[str, Config], unread: dict[Path, str]
) -> dict[str, Config]:
    """The configurations of a folder. A file that cannot be looked at keeps what it was `before`.

    Files whose name no VM can have (examples, `xl.conf`) are not VMs.
    """
    found: dict[str, Config] = {}
    try:
        files = sorted(os.listdir(folder))
    except FileNotFoundError:
        return {}
    for file in files:
        name = file.removesuffix(SUFFIX)
        if not file.endswith(SUFFIX) or not is_vm_name(name) or name == DOM0_NAME:
            continue
        path, config = folder / file, before.get(name)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            config = config or (path, None)  # it is there, whatever it says
            config = path, _uuid(_text(path))
        except (OSError, DriverError) as error:
            if isinstance(error, OSError) and error.errno in _NOT_THERE:
                continue
            unread[folder] = str(error)
        if config is not None:
            found[name] = config
    return found


def _text(path: Path) -> str:
    """A configuration without its comments; DriverError unless the whole of it can be read."""
    content = read_whole(path, CONFIG_MAX)
    if isinstance(content, str):
        raise DriverError(f"{path} {content}")
    if len(content) > CONFIG_MAX:
        raise DriverError(f"{path} has more than {CONFIG_MAX // 1024} KiB")
    return _COMMENT.sub(lambda match: match[1] or "", content.decode("utf-8", "replace"))


def _uuid(text: str) -> str | None:
    named = [match[2] for match in _UUID.finditer(text)]
    return named[-1].lower() if named else None


def own_frontends(path: Path) -> frozenset[str]:
    """The names xvdX of the disks in a configuration; DriverError if it cannot be read."""
    return frozenset(name for disks in _DISKS.findall(_text(path)) for name in _XVD.findall(disks))


def own_pci(path: Path) -> frozenset[str]:
    """The addresses of the PCI devices in a configuration; DriverError if it cannot be read."""
    return frozenset(
        f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(slot, 16):02x}.{function}"
        for devices in _PCI.findall(_text(path))
        for domain, bus, slot, function in _BDF.findall(devices)
    )


def check_config(name: str, path: Path) -> str | None:
    """The UUID that the file gives its VM; DriverError unless it can be read and is that of the VM
    `name`."""
    text = _text(path)
    named = [match[2] for match in _NAME.finditer(text)]
    if named and named[-1] != name:
        raise DriverError(
            f"{path} calls its VM '{harmless_text(named[-1], 40)}', so it is not that of {name}",
            hint="give the file and the VM the same name",
        )
    return _uuid(text)
