"""Calls of services that run, as the service lists them, in words."""

from __future__ import annotations

from pedos_cli.answers import take
from pedos_cli.output import NOTHING, show
from pedos_cli.pages import pages_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_cli.pages import Pages

TIMEOUT_S = 10.0
"""Seconds for a list: the service asks the agents for the bytes, and does not wait for slow
ones."""

ID_SHOWN = 12
"""Characters of an id's 32 that a list shows: enough to tell the calls that run from each other."""

UNITS = ("", "K", "M", "G", "T")


def call_pages() -> Pages:
    """Ask for the calls as `pages_of` does; they are in the order in which they began."""
    return (yield from pages_of("call.list", {}, "calls", _number))


def call_id(call: Mapping[str, object]) -> str:
    """Return its id, 128 bits in hexadecimal."""
    return take(call, "call", str)


def _number(call: Mapping[str, object]) -> int:
    """Return which one it is of those since the service began."""
    return take(call, "number", int)


def service(call: Mapping[str, object]) -> str:
    """Return the service, with its argument if it has one."""
    argument = take(call, "argument", str)
    return show(take(call, "service", str) + ("" if argument == "+" else argument))


def target(call: Mapping[str, object]) -> str:
    """Return the VM that serves; the requested one as long as that is not decided."""
    return show(call.get("target") or call.get("requested") or NOTHING)


def what(call: Mapping[str, object]) -> str:
    """Return a call in words: `work called vault: app.Open+page`."""
    return f"{show(take(call, 'source', str))} called {target(call)}: {service(call)}"


def seconds(call: Mapping[str, object]) -> float:
    """Return for how long the call has been there."""
    passed = call.get("seconds")
    return float(passed) if isinstance(passed, int | float) else 0.0


def age(passed: float) -> str:
    """Return a time in its two largest units: `3d 4h`, `2m 5s`, `0.4s`."""
    if passed < 10:
        return f"{passed:.1f}s"
    whole = int(passed)
    if whole < 60:
        return f"{whole}s"
    for unit, length, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= length:
            return f"{whole // length}{unit} {whole % length // part}{lesser}"
    return f"{whole // 60}m {whole % 60}s"


def size(count: object) -> str:
    """Return a number of bytes in a few digits: `12.3M`; a dash if it is not known."""
    if not isinstance(count, int):
        return NOTHING
    value, unit = float(count), 0
    while value >= 1000 and unit + 1 < len(UNITS):
        value, unit = value / 1024, unit + 1
    return str(count) if not unit else f"{value:.1f}{UNITS[unit]}"
