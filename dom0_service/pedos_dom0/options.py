"""The options of an attachment: text from a command line becomes checked values, once.

Names and values are those that users of qvm-block know. What is stored with an assignment and shown
in listings is the canonical form that `Options.canonical` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.device_classes import FALSE, TRUE
from pedos_protocol.names import SHOWN_MAX, harmless_text, is_frontend

from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRUTH = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}

# What Xen tells the target that the device is, unless it is a disk.
CDROM = "cdrom"

_KNOWN = {
    "block": "read-only=yes|no, frontend-dev=xvde..xvdz, devtype=disk|cdrom",
}


@attrs.frozen
class Options:
    """What was asked for. None means that the user left it open."""

    read_only: bool | None = None
    frontend: str | None = None
    cdrom: bool = False  # then read_only is True

    def canonical(self) -> dict[str, str]:
        """The options as they are kept and shown: only those that were asked for."""
        wire: dict[str, str] = {}
        if self.frontend is not None:
            wire["frontend-dev"] = self.frontend
        if self.read_only is not None:
            wire["read-only"] = "yes" if self.read_only else "no"
        if self.cdrom:
            wire["devtype"] = CDROM
        return wire

    def granted(self, read_only: bool) -> dict[str, str]:
        """What an attachment is made with that is read-only or not, by option or by rule."""
        made = {"read-only": "yes" if read_only else "no"}
        if self.cdrom:
            made["devtype"] = CDROM
        return made


def parse_options(device_class: str, raw: Mapping[str, str]) -> Options:
    """Checks the options of an attach; raises CallError(usage) that names the known ones."""
    read_only: bool | None = None
    frontend: str | None = None
    cdrom = False
    known = _KNOWN.get(device_class)
    for name, value in raw.items():
        if known is None:
            raise failure(
                "usage", f"{device_class} devices take no options, so not '{_show(name)}'"
            )
        if name == "read-only":
            read_only = _TRUTH.get(value.lower())
            if read_only is None:
                raise _bad_value(name, value, "yes or no")
        elif name == "frontend-dev":
            if not is_frontend(value):
                raise _bad_value(name, value, "a name from xvde to xvdz")
            frontend = value
        elif name == "devtype":
            if value not in ("disk", CDROM):
                raise _bad_value(name, value, f"disk or {CDROM}")
            cdrom = value == CDROM
        else:
            raise failure("usage", f"unknown option '{_show(name)}'; known for block: {known}")
    if cdrom and read_only is False:
        raise failure("usage", f"a {CDROM} is read-only: leave out read-only=no or devtype={CDROM}")
    return Options(read_only=True if cdrom else read_only, frontend=frontend, cdrom=cdrom)


def frontend_of_options(options: Mapping[str, str]) -> str | None:
    """The name that an assignment asks for; None if it leaves that open."""
    return options.get("frontend-dev")


def effective_options(options: Mapping[str, str], frontend: str | None) -> dict[str, str]:
    """The options of an attachment as it is: those that it was made with, and its name."""
    return {**options, **({} if frontend is None else {"frontend-dev": frontend})}


def _bad_value(name: str, value: str, right: str) -> Exception:
    return failure("usage", f"option {name} cannot be '{_show(value)}': it is {right}")


def _show(text: str) -> str:
    return harmless_text(text, SHOWN_MAX)
