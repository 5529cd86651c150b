"""A request for a rule: an argument that the rule's argument matches.

A `*` becomes a text that no rule names. For a device with kinds of interfaces the identity is a
whole one: what is not known of a device makes other rules decide (`pedos_protocol.kinds`).
"""

from __future__ import annotations

from itertools import islice, product

from pedos_protocol.kinds import UNKNOWN, letter_of, open_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ANY_TEXT = "any"

ANY_CLASS = "770000"
"""A class of interfaces that does not exist, so that no rule means it."""

ONLY = "only="
_DIGITS = 6
_COLONS = 3  # of an identity with kinds

TRIED_MAX = 4096
"""Texts that are tried for one identity: all for up to four stars among its kinds."""


def witness(service: str, argument: str) -> str:
    """Return an argument of a request that the argument of a rule matches."""
    if not service.startswith("device."):
        return f"+{ANY_TEXT}" if argument == "*" else argument
    parts = [] if argument == "*" else argument[1:].split(":", 2)
    backend, port, identity = [*parts, *["*"] * (3 - len(parts))]
    device_class = service.rpartition(".")[2]
    if letter_of(device_class):
        shown = _identity(device_class, identity)
    else:
        shown = identity.replace("*", ANY_TEXT)
    return f"+{backend.replace('*', ANY_TEXT)}:{port.replace('*', ANY_TEXT)}:{shown}"


def _identity(device_class: str, text: str) -> str:
    """Return an identity that matches; a fully known one, unless the rule is about the others."""
    letter = letter_of(device_class)
    head, only, kinds = text.rpartition(ONLY)
    if only:
        head = f"{ANY_TEXT}:{ANY_TEXT}:{ANY_TEXT}:" if head in ("", "*:") else head
        text = f"{head}{_whole(letter, kinds.split(','))}"
    found = list(islice(_filled(letter, text), TRIED_MAX))
    known = (each for each in found if open_part(device_class, each) is None)
    about_unknown = (each for each in found if each.endswith(UNKNOWN))
    return next(known, None) or next(about_unknown, None) or text.replace("*", ANY_TEXT)


def _whole(letter: str, kinds: list[str]) -> str:
    """Return a kind of those that `only=` allows: a known one if it allows any."""
    known = [kind for kind in kinds if UNKNOWN not in kind] or kinds
    kind = known[0]
    if kind == f"{letter}*":
        return f"{letter}{ANY_CLASS}"
    return kind.replace("*", "0" * (_DIGITS + 2 - len(kind)))


def _filled(letter: str, text: str) -> Iterator[str]:
    """Yield texts that a glob matches: those with three colons, one star having all that are
    missing."""
    pieces = text.split("*")
    stars, missing = len(pieces) - 1, _COLONS - text.count(":")
    ends = ["", f"{letter}{ANY_CLASS}", *("0" * count for count in range(1, _DIGITS))]
    if missing < 0:
        return
    for at in range(stars) if missing else (-1,):
        fills: list[list[str]] = []
        for star in range(stars):
            if star == at:
                is_begun = pieces[star].rpartition(":")[2]
                head = (
                    f":{ANY_TEXT}" * (missing - 1) + ":" if is_begun else f"{ANY_TEXT}:" * missing
                )
                goes_on = not pieces[star + 1].startswith(":")
                fills.append([head + end for end in (ends if goes_on else [ANY_TEXT])])
            elif star > at and ":" not in "".join(pieces[star + 1 :]):
                fills.append(ends)
            else:
                fills.append([ANY_TEXT])
        for chosen in product(*fills):
            yield "".join(map("".join, zip(pieces, (*chosen, ""), strict=True)))
