"""The parts of a borrowed USB device that no driver of this VM has."""

from __future__ import annotations

import re
from typing import Final

from pedos_protocol import kind_words

from pedos_agent.device_classes.sysfs import hex_field, names_of
from pedos_agent.system.reading import link_target

#: More are not named: a device can have some thirty.
NAMED_MAX: Final = 4
# An interface of a device, behind its name: configuration and number.
_INTERFACE: Final = re.compile(r":[0-9]+\.[0-9]+")


def driverless(folder: str) -> list[str]:
    """The kinds of its interfaces without a driver, each once, in their order. OSError."""
    name = folder.rpartition("/")[2]
    kinds: dict[str, None] = {}
    for entry in names_of(folder):
        if entry.startswith(name) and _INTERFACE.fullmatch(entry.removeprefix(name)):
            inner = f"{folder}/{entry}"
            fields = ("Class", "SubClass", "Protocol")
            kind = "u" + "".join(hex_field(inner, f"bInterface{each}") for each in fields)
            if len(kind) == 7 and link_target(f"{inner}/driver") is None:  # it is there
                kinds[kind] = None
    return list(kinds)


def in_words(kinds: list[str]) -> str:
    """For a user: what these parts are. No driver need have them all; some are for programs."""
    named = [f"{kind_words.words(kind)} ({kind})" for kind in kinds[:NAMED_MAX]]
    if more := len(kinds) - len(named):
        named.append(f"{more} more")
    return f"no driver here has this part of it: {', '.join(named)}"
