"""The forms of values that are right as they are, for C to check many in one step.

Each says with bounds and characters what a function of `names` or `fields` says in code, which is
asked about all values without its form. So a form may leave out values that are right, as the
keywords among the targets of calls, but has none that the function would refuse or alter: tests
compare the two.
"""

from __future__ import annotations

from typing import NamedTuple

from . import names

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


class Plain(NamedTuple):
    """The arguments of `_wire.Form`, but for what to do with other values."""

    kind: str
    low: int = 0
    high: int = 0
    first: str = ""
    rest: str = ""
    words: tuple[str, ...] | None = None


def text(low: int, high: int, first: str, rest: str | None = None) -> Plain:
    """`low` to `high` characters, the first of `first` and others of `rest`, by default of both the
    same."""
    return Plain("t", low, high, first, first if rest is None else rest)


def line(high: int) -> Plain:
    """At most so many characters of printable ASCII."""
    return text(0, high, _PRINTABLE)


def harmless(high: int) -> Plain:
    """At most so many characters of harmless ASCII."""
    return text(0, high, names.HARMLESS_CHARACTERS)


def one_of(words: tuple[str, ...]) -> Plain:
    """One of these texts."""
    return Plain("w", words=words)


def integer(low: int, high: int) -> Plain:
    """An integer in these bounds."""
    return Plain("i", low, high)


FLAG = Plain("f")
#: A number with a fraction, from 0.
REAL = Plain("r")
#: No value: all are for the function.
OTHER = Plain("o")

VM_NAME = text(1, names.VM_NAME_MAX, names.LETTERS, names.VM_NAME_CHARACTERS)
DEVICE_ID = text(1, names.DEVICE_ID_MAX, names.ALPHANUMERIC, names.DEVICE_ID_CHARACTERS)
IDENTITY = text(0, names.IDENTITY_MAX, names.IDENTITY_CHARACTERS)
INSTANCE = text(0, names.INSTANCE_MAX, names.IDENTITY_CHARACTERS)
ATTACHMENT_ID = text(names.ATTACHMENT_ID_LENGTH, names.ATTACHMENT_ID_LENGTH, names.HEX_DIGITS)
CALL_ID = text(names.CALL_ID_LENGTH, names.CALL_ID_LENGTH, names.HEX_DIGITS)
SERVICE_NAME = text(1, names.SERVICE_NAME_MAX, names.ALPHANUMERIC + "_", names.SERVICE_CHARACTERS)
SERVICE_ARGUMENT = text(1, names.SERVICE_ARGUMENT_MAX, "+", names.SERVICE_CHARACTERS + "+")
USER_NAME = text(1, names.USER_NAME_MAX, names.LETTERS + "_", names.SERVICE_CHARACTERS)
#: Of the targets of calls: VMs, and none.
CALL_TARGET = VM_NAME._replace(low=0)
