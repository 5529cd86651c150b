"""Rules that mean one kind of USB device and allow more: a stick with a keyboard in it.

`*u08*` matches a device that *has* an interface of class 08, and perhaps others. Such a rule is no
mistake of the language, and may be meant; `check` notes it where no earlier rule asks about
keyboards or denies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import evolve

from .lint import Before, finding, parts_of
from .model import Outcome, PolicyError, Rule
from .selectors import device_parts, only_of, selector
from .tokens import ANY

_PLAIN = Outcome("ask")
_VERBS = ("attach", "assign", ANY)
_CLASSES = ("usb", ANY)
# What a glob says of kinds: `u08`, `u080650`.
_NAMED = re.compile(r"u[0-9a-f]{1,6}")
_KIND_LENGTH = 7
_HID = "u03"
# A rule about keyboards matches all of these: two kinds of keyboard and a mouse, alone, and behind
# and before something else. The numbers and the name are of no real device.
_TYPING = tuple(
    device_parts("usb", "sys-usb", "1-1", f"0000:0000:_:{before}{kind}{behind}")
    for kind in ("u030101", "u030000", "u030102")
    for before, behind in (("", ""), ("u080650", ""), ("", "u080650"), ("u080650", "uff0000"))
)


def notes(rules: Sequence[Rule]) -> Iterator[PolicyError]:
    """The rules that allow a device by one of its kinds, and others that have a keyboard too."""
    keyboards = Before()
    for rule in rules:
        if not _is_about_usb(rule):
            continue
        if rule.action != "allow":
            if _takes_keyboards(rule):
                keyboards.add(_of_place(rule))
            continue
        kinds = _named_kinds(rule)
        if kinds and keyboards.covering(_of_place(rule)) is None:
            yield _note(rule, kinds)


def _is_about_usb(rule: Rule) -> bool:
    parts = rule.service.split(".")
    if rule.service == ANY:
        return True
    return len(parts) == 3 and parts[0] == "device" and parts[1] in _VERBS and parts[2] in _CLASSES


def _takes_keyboards(rule: Rule) -> bool:
    if rule.argument == ANY:
        return True
    check = selector(f"+*:*:{parts_of(rule.argument)[2]}") if rule.selects else None
    return check is not None and all(map(check.matches, _TYPING))


def _of_place(rule: Rule) -> Rule:
    """Of a rule what matters here: who, whose, and where; not what else it does with a device."""
    argument = rule.argument
    if argument != ANY:
        backend, port, _ = parts_of(argument)
        argument = f"+{backend}:{port}:*"
    return evolve(rule, argument=argument, outcome=_PLAIN)


def _named_kinds(rule: Rule) -> list[str]:
    """The kinds that a rule names of devices which may have others; [] if it names none, or also
    names keyboards itself."""
    identity = parts_of(rule.argument)[2] if rule.selects else ANY
    if only_of(identity)[1] is not None:
        return []
    # An identity has three colons, so what follows the last one is in its kinds, or in `*`.
    kinds = identity.rpartition(":")[2]
    if ANY not in kinds:
        return []
    named = []
    for piece in filter(None, kinds.split(ANY)):
        found = _NAMED.findall(piece)
        if "".join(found) != piece:
            return []  # a part of a serial number
        named += found
    if any(kind.startswith(_HID) or _HID.startswith(kind) for kind in named):
        return []
    return [kind if len(kind) == _KIND_LENGTH else f"{kind}{ANY}" for kind in named]


def _note(rule: Rule, kinds: list[str]) -> PolicyError:
    backend, port, identity = parts_of(rule.argument)
    head = identity.rpartition(":")[0]
    head = f"{head}:" if head.strip("*:") else ""
    only = f"+{backend}:{port}:{head}only={','.join(dict.fromkeys(kinds))}"
    return finding(
        rule,
        f"this rule also allows a USB device that has a keyboard beside {' and '.join(kinds)}",
        f"{only} is one with nothing else; or a rule before it asks about +*:*:*{_HID}*",
    )
