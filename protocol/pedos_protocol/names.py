"""Names: what they may look like, and how text that somebody else chose is made harmless.

Names are checked with sets of characters rather than with regular expressions: there is no
back-tracking to think about, `$` cannot match before a newline, and nothing is compiled while a
command starts.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from typing import NoReturn

#: The kinds of devices, in the order in which the documentation names them.
DEVICE_CLASSES = ("block", "usb", "pci", "mic")

VM_NAME_MAX = 31  # characters; the longest name that libvirt, Xen's tools and PedOS agree on
DEVICE_ID_MAX = 64  # characters; /dev/disk/by-id names are longer, and are descriptions, not ids
IDENTITY_MAX = 128  # characters; VENDOR:PRODUCT:SERIAL:INTERFACES of a USB device fits
DESCRIPTION_MAX = 128  # characters; one line of a terminal or of a menu
ATTACHMENT_ID_LENGTH = 16  # hexadecimal digits: 64 random bits, so an id is never met again
SHOWN_MAX = 40  # characters of a refused text that an error message repeats

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"
_LETTERS = _UPPER + _LOWER
_VM_NAME_CHARACTERS = _LETTERS + _DIGITS + "_-"
_DEVICE_ID_CHARACTERS = _LETTERS + _DIGITS + "._-"
_IDENTITY_CHARACTERS = _LETTERS + _DIGITS + ":._-"

#: xvda to xvdd are the VM's own disks (root, private, volatile, kernel modules). xvdi comes first,
#: as PedOS has always numbered lent disks from there.
_FRONTENDS = tuple(f"xvd{letter}" for letter in "ijklmnopqrstuvwxyzefgh")

#: What a description may be made of. `< > & " \` and the back-tick are missing because they mean
#: something to HTML, Pango, shells and JSON; everything that is not ASCII because look-alikes and
#: marks that turn the direction of writing make one device look like another.
_HARMLESS = frozenset(_LETTERS + _DIGITS + " .,:;()[]{}+-_/@#%=!?*'~^|$")


class DeviceName:
    """A device as users write it: `BACKEND:ID`. Compares and hashes by value."""

    __slots__ = ("backend", "id")

    def __init__(self, backend: str, id: str) -> None:  # noqa: A002 - the word of the interface
        self.backend = backend
        self.id = id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeviceName):
            return NotImplemented
        return self.backend == other.backend and self.id == other.id

    def __hash__(self) -> int:
        return hash((self.backend, self.id))

    def __str__(self) -> str:
        return f"{self.backend}:{self.id}"

    def __repr__(self) -> str:
        return f"DeviceName({self.backend!r}, {self.id!r})"


def _made_of(text: str, characters: str) -> bool:
    # strip() takes whatever is in the set off both ends: nothing is left exactly when all was.
    return not text.strip(characters)


def is_vm_name(text: str) -> bool:
    """Is `text` a letter and up to 30 letters, digits, `_` or `-`?"""
    return (
        0 < len(text) <= VM_NAME_MAX and text[0] in _LETTERS and _made_of(text, _VM_NAME_CHARACTERS)
    )


def is_device_id(text: str) -> bool:
    """Is `text` a letter or digit and up to 63 letters, digits, `.`, `_` or `-`?"""
    return (
        0 < len(text) <= DEVICE_ID_MAX
        and text[0] not in "._-"
        and _made_of(text, _DEVICE_ID_CHARACTERS)
    )


def is_frontend(text: str) -> bool:
    """Is `text` the name of a block device in a VM that may be lent one: xvde to xvdz?"""
    return text in _FRONTENDS


def frontend_of(device: str) -> str | None:
    """The xvd disk that `device` is, or is a partition of: "xvdi" of xvdi and xvdi1; None if none.

    Also xvda to xvdd, which nobody is lent.
    """
    name = device.rstrip(_DIGITS)
    return name if name[:3] == "xvd" and len(name) == 4 and name[3] in _LOWER else None


def is_identity(text: str) -> bool:
    """Is `text` a device's identity: up to 128 letters, digits, `:`, `.`, `_` or `-`?"""
    return len(text) <= IDENTITY_MAX and _made_of(text, _IDENTITY_CHARACTERS)


def is_attachment_id(text: str) -> bool:
    """Is `text` 16 hexadecimal digits, in lower case?"""
    return len(text) == ATTACHMENT_ID_LENGTH and _made_of(text, _DIGITS + "abcdef")


def frontend_names() -> tuple[str, ...]:
    """The block device names that may be given out, in the order in which they are."""
    return _FRONTENDS


def shown(untrusted: object) -> str:
    """`untrusted` in quotes, escaped to ASCII and bounded, for an error message."""
    if not isinstance(untrusted, str):
        return f"a value of type {type(untrusted).__name__}"
    if len(untrusted) <= SHOWN_MAX:
        return ascii(untrusted)
    return f"{untrusted[:SHOWN_MAX]!a}... ({len(untrusted)} characters)"


def _refuse(untrusted: object, what: str, right: str) -> NoReturn:
    raise ValueError(f"{shown(untrusted)} is not {what}: {right}")


def parse_vm_name(untrusted: object) -> str:
    """The name of a VM; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_vm_name(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "a VM name",
        f"a letter, then at most {VM_NAME_MAX - 1} letters, digits, '_' or '-', as in sys-usb",
    )


def parse_device_id(untrusted: object) -> str:
    """The id of a device within its VM; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_device_id(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "a device id",
        f"a letter or digit, then at most {DEVICE_ID_MAX - 1} letters, digits, '.', '_' or '-', "
        "as in sda1",
    )


def parse_device_name(untrusted: object) -> DeviceName:
    """`SOURCE:ID` as a `DeviceName`; ValueError says what is wrong with it."""
    if not isinstance(untrusted, str) or ":" not in untrusted:
        _refuse(untrusted, "a device", "SOURCE:ID is meant, as in sys-usb:sda1")
    untrusted_backend, _, untrusted_id = untrusted.partition(":")
    return DeviceName(parse_vm_name(untrusted_backend), parse_device_id(untrusted_id))


def parse_device_class(untrusted: object) -> str:
    """One of `DEVICE_CLASSES`; ValueError says what is wrong."""
    if isinstance(untrusted, str) and untrusted in DEVICE_CLASSES:
        return untrusted
    _refuse(untrusted, "a device class", f"one of {', '.join(DEVICE_CLASSES)} is meant")


def parse_frontend(untrusted: object) -> str:
    """The name of a lent block device in its VM; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_frontend(untrusted):
        return untrusted
    _refuse(untrusted, "a name for a lent block device", "xvde to xvdz are")


def harmless_text(untrusted: str, limit: int = DESCRIPTION_MAX) -> str:
    """`untrusted` with everything but harmless ASCII as `_`, and at most `limit` characters.

    What is cut ends in `...`. Doing it twice changes nothing.
    """
    text = "".join(
        [character if character in _HARMLESS else "_" for character in untrusted[: limit + 1]]
    )
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."[:limit]


def printable_text(text: str, limit: int) -> str:
    """`text` from a trusted program, of any language, for one line: no control or format
    characters (they become `_`), and at most `limit` characters (cut with `...`)."""
    if not text.isprintable():
        text = "".join(
            [character if character.isprintable() else "_" for character in text[: limit + 1]]
        )
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."[:limit]


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which numbers within a text count as numbers: sda2 before sda10."""
    key: list[tuple[int, int, str]] = []
    at = 0
    while at < len(text):
        start = at
        is_number = text[at] in _DIGITS
        while at < len(text) and (text[at] in _DIGITS) == is_number:
            at += 1
        run = text[start:at]
        # int() refuses more than 4,300 digits; by length and text, any number of them sorts.
        digits = run.lstrip("0")
        key.append((0, len(digits), digits) if is_number else (1, 0, run))
    key.append((-1, 0, text))  # so that 01 and 1 differ, and always in the same order
    return tuple(key)
