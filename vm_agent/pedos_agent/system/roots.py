"""The places of the kernel's and udev's trees: parameters, so that tests bring their own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pedos_protocol.frozen import frozen


@frozen
class Roots:
    """The places of the kernel's and udev's trees."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    udev: Path = Path("/run/udev/data")
    dev: Path = Path("/dev")


#: Those of this machine.
ROOTS: Final = Roots()
