"""The VMs that an administrator has configured for `xl`: FOLDER/NAME.cfg is the VM NAME."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pedos_protocol.names import harmless_text, is_vm_name

from pedos_dom0.drivers.base import DOM0_NAME, DriverError

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

SUFFIX = ".cfg"
# Bytes of a configuration; one with some hundred disks is a tenth of it.
CONFIG_MAX = 256 * 1024

# xl.cfg(5): NAME = "VALUE", with either kind of quote; of several the last one counts.
_NAME = re.compile(r"""^[ \t]*name[ \t]*=[ \t]*(["'])(.*?)\1""", re.MULTILINE)


def configured(folders: Iterable[Path]) -> dict[str, Path]:
    """Name -> configuration, of all VMs in the folders; the folder named first wins.

    Files whose name no VM can have (examples, `xl.conf`) are not VMs. A folder that is not there
    has none.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("cannot list %s: %s", folder, error.strerror)
            continue
        for file in names:
            name = file.removesuffix(SUFFIX)
            if file.endswith(SUFFIX) and is_vm_name(name) and name != DOM0_NAME:
                path = folder / file
                if path.is_file():
                    found.setdefault(name, path)
    return found


def check_config(name: str, path: Path) -> None:
    """DriverError unless the file can be read and is that of the VM `name`."""
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise DriverError(f"{path} cannot be read: {error.strerror}") from error
    named = [match[2] for match in _NAME.finditer(text)]
    if named and named[-1] != name:
        raise DriverError(
            f"{path} calls its VM '{harmless_text(named[-1], 40)}', so it is not that of {name}",
            hint="give the file and the VM the same name",
        )
