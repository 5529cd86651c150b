"""The options of an attachment: text from a command line becomes checked values, once.

Names and values are those that users of qvm-block know. What is stored with an assignment and shown
in listings is the canonical form that `Options.canonical` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.names import SHOWN_MAX, harmless_text, is_frontend

from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRUTH = {
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}

_KNOWN = {
    "block": "read-only=yes|no, frontend-dev=xvde..xvdz, devtype=disk",
}


@attrs.frozen
class Options:
    """What was asked for. None means that the user left it open."""

    read_only: bool | None = None
    frontend: str | None = None

    def canonical(self) -> dict[str, str]:
        """The options as they are kept and shown: only those that were asked for."""
        wire: dict[str, str] = {}
        if self.frontend is not None:
            wire["frontend-dev"] = self.frontend
        if self.read_only is not None:
            wire["read-only"] = "yes" if self.read_only else "no"
        return wire


def parse_options(device_class: str, raw: Mapping[str, str]) -> Options:
    """Checks the options of an attach; raises CallError(usage) that names the known ones."""
    read_only: bool | None = None
    frontend: str | None = None
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
            if value != "disk":
                raise _bad_value(name, value, "disk; there is no emulated CD-ROM drive here")
        else:
            raise failure("usage", f"unknown option '{_show(name)}'; known for block: {known}")
    return Options(read_only=read_only, frontend=frontend)


def effective_options(frontend: str | None, read_only: bool) -> dict[str, str]:
    """The options of an attachment as it is, in the order in which users are used to see them."""
    wire = {} if frontend is None else {"frontend-dev": frontend}
    wire["read-only"] = "yes" if read_only else "no"
    return wire


def _bad_value(name: str, value: str, right: str) -> Exception:
    return failure("usage", f"option {name} cannot be '{_show(value)}': it is {right}")


def _show(text: str) -> str:
    return harmless_text(text, SHOWN_MAX)
