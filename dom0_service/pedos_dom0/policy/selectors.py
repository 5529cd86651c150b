"""The argument column of a device rule: which devices it selects, and how certain that is.

Most identities are fully known, and then a selector matches or does not. If a device's kinds are
not all known (pedos_protocol.kinds), a selector matches *possibly* if some device that begins like
this one would match, and *certainly* if every such device would. evaluate.py decides what rules do
with that: what is unknown must never get a device more than it would get if it were known.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from attrs import field, frozen
from pedos_protocol.kinds import UNKNOWN, Open, kinds_in, letter_of, letters, open_part
from pedos_protocol.names import shown

SELECTOR_PARTS = ("BACKEND", "PORT", "IDENTITY")
SELECTOR_SHAPE = "+BACKEND:PORT:IDENTITY"
#: The prefix of a list of kinds, at the end of an IDENTITY: the device has no other kinds.
ONLY = "only="
_ONLY_SHAPE = "only=u08*,u0e*"

# Of 10,000 rules few are ever compared with a device, because the index excludes the others. So
# their globs are parsed on demand, and the garbage collector, which holds up the event loop, has
# fewer objects to look at.
SELECTORS_KEPT = 4096

_ALLOWED = (
    re.compile(r"[A-Za-z0-9_*-]+"),
    re.compile(r"[A-Za-z0-9._*-]+"),
    re.compile(r"[A-Za-z0-9:._*-]+"),
)
# `u080650`, `u08*`, `u*`; or the mark of unknown kinds.
_KIND = re.compile(rf"[up](?:[0-9a-f]{{6}}|[0-9a-f]{{0,5}}\*|{UNKNOWN})")


Kinds = tuple[str, tuple[str, ...]]


class DeviceParts(NamedTuple):
    """The device of a request.

    `kinds` is what kinds.kinds_in finds in the identity, None for a device of a class without
    kinds. `open` is None if the device is fully known.
    """

    backend: str
    port: str
    identity: str
    kinds: Kinds | None = None
    open: Open | None = None


@frozen
class Glob:
    """A text in which each `*` stands for any run of characters, also an empty one.

    Matching searches the pieces from left to right, never with a regular expression: a VM chooses
    the texts, and backtracking over several `*` would let it choose the time too.
    """

    text: str
    _pieces: tuple[str, ...] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_pieces", tuple(self.text.split("*")))

    def matches(self, text: str) -> bool:
        if len(self._pieces) == 1:
            return text == self.text
        first, *middle, last = self._pieces
        if not text.startswith(first):
            return False
        position, end = len(first), len(text) - len(last)
        for piece in middle:
            found = text.find(piece, position, end)
            if found < 0:
                return False
            position = found + len(piece)
        return position <= end and text.endswith(last)

    def possibly(self, device: Open) -> bool:
        """Does it match `device.known`, followed by some text of the characters `device.fill`?"""
        known, fill = device.known, device.fill

        def in_fill(*pieces: str) -> bool:
            return not any(piece.strip(fill) for piece in pieces)

        if self.matches(device.identity):
            return True
        first, *rest = self._pieces
        if not rest or len(first) > len(known):
            return first.startswith(known) and in_fill(first[len(known) :], *rest)
        if not known.startswith(first):
            return False
        position = len(first)
        for at, piece in enumerate(rest, start=1):
            # As early as possible: this leaves the least to be found in the unknown text.
            found = known.find(piece, position) if at < len(rest) else -1
            if found < 0:
                left = known[position:]
                return in_fill(*rest[at:]) and any(
                    left.endswith(piece[:cut]) and in_fill(piece[cut:])
                    for cut in range(len(piece) + 1)
                )
            position = found + len(piece)
        return True

    def certainly(self, device: Open) -> bool:
        """Does it match everything that may follow `device.known`, or name the unknown itself?"""
        if self.text == device.identity:
            return True
        if UNKNOWN in self.text and self.matches(device.identity):
            return True
        return self.text.endswith("*") and self.matches(device.known)


@frozen
class Only:
    """The end of an IDENTITY that covers *all* kinds of a device: each must be one of these."""

    text: str
    _head: Glob
    _kinds: tuple[Glob, ...]

    def matches(self, kinds: Kinds | None) -> bool:
        return kinds is not None and self._cover(kinds[1]) and self._head.matches(kinds[0])

    def possibly(self, device: Open) -> bool:
        head, kinds = kinds_in(device.known)
        return self._cover(kinds) and self._head.matches(head)

    def certainly(self, device: Open) -> bool:
        says_so = any(UNKNOWN in kind.text for kind in self._kinds)
        return says_so and self.possibly(device)

    def _cover(self, kinds: tuple[str, ...]) -> bool:
        return all(any(glob.matches(kind) for glob in self._kinds) for kind in kinds)


@frozen
class Selector:
    """The argument column of a device rule: up to three globs, a missing one meaning any."""

    # Those that can fail, and the part that each is for: most of a policy's globs are a lone `*`.
    checks: tuple[tuple[int, Glob | Only], ...]

    def matches(self, device: DeviceParts) -> bool:
        """Does it select a device that is fully known?"""
        for at, glob in self.checks:  # noqa: SIM110 - all() costs a third more, per rule
            if not glob.matches(device[at]):  # type: ignore[arg-type]
                return False
        return True

    def why_not(self, device: DeviceParts) -> str:
        """The part that did not match; "" if all did."""
        for at, glob in self.checks:
            if device.open is not None and at >= _IDENTITY:
                match = _match_identity(glob, device.open)
            else:
                match = SURE if glob.matches(device[at]) else NO  # type: ignore[arg-type]
            what = f"{SELECTOR_PARTS[min(at, _IDENTITY)]} {device[min(at, _IDENTITY)]!r}"
            if match == NO:
                return f"{what} does not match {glob.text!r}"
            if match == POSSIBLE:
                return f"{what} is not fully known, so it may or may not match {glob.text!r}"
        return ""


_IDENTITY = SELECTOR_PARTS.index("IDENTITY")
_KINDS = DeviceParts._fields.index("kinds")

NO, POSSIBLE, SURE = 0, 1, 2


@lru_cache(maxsize=SELECTORS_KEPT)
def selector(argument: str) -> Selector:
    """From `+BACKEND:PORT:IDENTITY`. IDENTITY contains colons itself, so two splits at most."""
    parts = argument[1:].split(":", 2)
    checks: list[tuple[int, Glob | Only]] = [
        (at, Glob(part)) for at, part in enumerate(parts[:_IDENTITY]) if part != "*"
    ]
    if len(parts) > _IDENTITY and parts[_IDENTITY] != "*":
        check = _identity_check(parts[_IDENTITY])
        checks.append((_KINDS if isinstance(check, Only) else _IDENTITY, check))
    return Selector(tuple(checks))


def match_open(argument: str, device: DeviceParts) -> int:
    """NO, POSSIBLE or SURE: does a selector match a device that is not fully known?"""
    unknown = device.open
    assert unknown is not None
    place, _, rest = argument.partition(":")
    port, _, identity = rest.partition(":")
    if not selector(f"{place}:{port or '*'}").matches(device):
        return NO
    if identity in ("", "*"):
        return SURE
    return _match_identity(_identity_check(identity), unknown)


def _match_identity(check: Glob | Only, unknown: Open) -> int:
    if unknown.fill is None:
        return POSSIBLE if check.text.strip("*") else SURE
    if check.certainly(unknown):
        return SURE
    return POSSIBLE if check.possibly(unknown) else NO


@lru_cache(maxsize=SELECTORS_KEPT)
def _identity_check(identity: str) -> Glob | Only:
    head, kinds = only_of(identity)
    if kinds is None:
        return Glob(identity)
    return Only(identity, Glob(head), tuple(Glob(kind) for kind in kinds.split(",")))


def only_of(identity: str) -> tuple[str, str | None]:
    """The text before `only=` in a rule's IDENTITY (`*` for an empty one), and the kinds after it;
    the whole and None if there is no `only=`."""
    head, found, kinds = identity.rpartition(ONLY)
    if not found or (head and not head.endswith(":")):
        return identity, None
    return head[:-1] or "*", kinds


def without_only(argument: str) -> str:
    """A selector of globs alone that selects those devices and more: for the index."""
    head, found, _ = argument.rpartition(":" + ONLY)
    if not found:
        return argument
    # `+B:P:only=` has any identity, `+B:P:HEAD:only=` one that begins with HEAD and a colon.
    return f"{head}:*"


def device_parts(device_class: str, backend: str, port: str, identity: str) -> DeviceParts:
    """The device of a request whose parts have been checked."""
    if not letter_of(device_class):
        return DeviceParts(backend, port, identity)
    kinds, unknown = kinds_in(identity), open_part(device_class, identity)
    return DeviceParts(backend, port, identity, kinds, unknown)


def selector_problem(device_class: str, argument: str) -> tuple[str, str] | None:
    """Why `argument` is no selector for devices of that class (`*` for any), and the correction."""
    if argument == "+":
        return "'+' selects no device", "write '*' for every device"
    for at, part in enumerate(argument[1:].split(":", 2)):
        what = SELECTOR_PARTS[at]
        if not part:
            return f"{what} of {SELECTOR_SHAPE} is empty", "write '*' for any"
        head, only = only_of(part) if at == _IDENTITY else (part, None)
        if not _ALLOWED[at].fullmatch(head):
            if ONLY in part:
                message = f"{what} {shown(part)} has {ONLY} in a place where it has no meaning"
                return (
                    message,
                    f"write +BACKEND:PORT:{_ONLY_SHAPE}, or +BACKEND:PORT:1050:*:{_ONLY_SHAPE}",
                )
            return f"{what} {shown(part)} has a character that no {what} has", "'*' stands for any"
        if only is not None and (problem := _only_problem(device_class, only)):
            return problem
    return None


def _only_problem(device_class: str, only: str) -> tuple[str, str] | None:
    if device_class not in (*letters(), "*"):
        return (
            f"{device_class} devices have no kinds for {shown(ONLY)}",
            f"only {' and '.join(letters())} have",
        )
    for kind in only.split(","):
        if not _KIND.fullmatch(kind):
            return (
                f"{shown(kind)} is not a kind of interface",
                "as in only=u080650 or only=u08*,u03*: u (pci: p) and up to six of 0-9 a-f, "
                "with '*' for the rest",
            )
    return None
