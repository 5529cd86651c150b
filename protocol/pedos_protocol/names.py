"""Names: their valid forms, and how text from outside is made harmless.

Names are checked with sets of characters rather than with regular expressions: there is no
backtracking to think about, `$` cannot match before a newline, and nothing is compiled while a
command starts.
"""

from __future__ import annotations

from unicodedata import category

from .device_classes import FRONTENDS, class_named, class_names

TYPE_CHECKING = False  # as typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from typing import Any, NoReturn


VM_NAME_MAX = 31  # characters; the longest name that libvirt, Xen's tools and PedOS agree on
DEVICE_ID_MAX = 64  # characters; /dev/disk/by-id names are longer, and are descriptions, not ids
IDENTITY_MAX = 256  # characters; VENDOR:PRODUCT:SERIAL:KINDS with kinds.KINDS_MAX kinds fits
INSTANCE_MAX = 40  # characters; an agent's own mark and a counter
DESCRIPTION_MAX = 128  # characters; one line of a terminal or of a menu
ATTACHMENT_ID_LENGTH = 16  # hexadecimal digits: 64 random bits, so an id never occurs twice
SERVICE_NAME_MAX = 255  # characters; where services are files, no name is longer
SERVICE_ARGUMENT_MAX = 384  # characters with the "+": no request of the policy has more
USER_NAME_MAX = 32  # characters; useradd's bound
CALL_TARGET_MAX = 64  # characters; `uuid:` and 36 more, or `@dispvm:` and a VM's name
CALL_ID_LENGTH = 32  # hexadecimal digits: 128 random bits, which nobody guesses
END_TEXT_MAX = 200  # characters about the end of a call: a sentence with a name or two
SHOWN_MAX = 40  # characters of a refused text that an error message repeats

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"
HEX_DIGITS = _DIGITS + "abcdef"
_HEX = frozenset(HEX_DIGITS)
LETTERS = _UPPER + _LOWER
ALPHANUMERIC = LETTERS + _DIGITS
VM_NAME_CHARACTERS = ALPHANUMERIC + "_-"
DEVICE_ID_CHARACTERS = ALPHANUMERIC + "._-"
SERVICE_CHARACTERS = ALPHANUMERIC + "._-"
IDENTITY_CHARACTERS = ALPHANUMERIC + ":._-"

#: The characters of a description, beside the letters, digits and accents of all scripts. `< > & "
#: \` and the back-tick are missing because they mean something to HTML, Pango, shells and JSON;
#: other signs, blanks and marks because they make one device look like another.
HARMLESS_CHARACTERS = ALPHANUMERIC + " .,:;()[]{}+-_/@#%=!?*'~^|$"
_HARMLESS = frozenset(HARMLESS_CHARACTERS)

#: First letters of Unicode's categories of letters and of marks on them; and that of digits.
_LETTER, _MARK, _DIGIT = "L", "M", "Nd"

#: Marks on one letter. Vietnamese, Thai and pointed Hebrew need two or three; hundreds of them
#: extend over the lines above and below.
MARKS_MAX = 4

#: Letters, marks and one sign to Unicode that are invisible or look like a blank: fillers, joiners
#: and selectors of variants (DerivedCoreProperties.txt, Default_Ignorable_Code_Point), and the
#: pattern of Braille without a dot.
_UNSEEN = (
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F),
    *(0x2800, 0x3164, 0xFFA0, 0x16FE4),
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
)
_UNSEEN_CHARACTERS = frozenset(map(chr, _UNSEEN))


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
    # strip() removes characters of the set from both ends: nothing is left exactly if all were in
    # it.
    return not text.strip(characters)


def is_vm_name(text: str) -> bool:
    """Is `text` a letter and up to 30 letters, digits, `_` or `-`?"""
    return (
        0 < len(text) <= VM_NAME_MAX and text[0] in LETTERS and _made_of(text, VM_NAME_CHARACTERS)
    )


def is_device_id(text: str) -> bool:
    """Is `text` a letter or digit and up to 63 letters, digits, `.`, `_` or `-`?"""
    return (
        0 < len(text) <= DEVICE_ID_MAX
        and text[0] not in "._-"
        and _made_of(text, DEVICE_ID_CHARACTERS)
    )


def frontend_of(device: str) -> str | None:
    """The xvd disk that `device` is, or is a partition of: "xvdi" of xvdi and xvdi1; None if none.

    Also xvda to xvdd, which are never given to lent devices.
    """
    name = device.rstrip(_DIGITS)
    return name if name[:3] == "xvd" and len(name) == 4 and name[3] in _LOWER else None


def is_identity(text: str) -> bool:
    """Is `text` a device's identity: up to 256 letters, digits, `:`, `.`, `_` or `-`?"""
    return len(text) <= IDENTITY_MAX and _made_of(text, IDENTITY_CHARACTERS)


def is_instance(text: str) -> bool:
    """Is `text` an instance of a device's id? "" is that of one without instances."""
    return len(text) <= INSTANCE_MAX and _made_of(text, IDENTITY_CHARACTERS)


def is_attachment_id(text: str) -> bool:
    """Is `text` 16 hexadecimal digits, in lower case?"""
    return len(text) == ATTACHMENT_ID_LENGTH and _made_of(text, HEX_DIGITS)


def is_service_name(text: str) -> bool:
    """Is `text` a letter, digit or `_`, and up to 254 of these, `.` or `-`? So no service is named
    as a folder, or as an option."""
    is_bounded = 0 < len(text) <= SERVICE_NAME_MAX
    return is_bounded and text[0] not in ".-" and _made_of(text, SERVICE_CHARACTERS)


def is_service_argument(text: str) -> bool:
    """Is `text` a `+`, and then at most 383 letters, digits, `.`, `_`, `-` or `+`?"""
    is_bounded = len(text) <= SERVICE_ARGUMENT_MAX
    return is_bounded and text[:1] == "+" and _made_of(text, SERVICE_CHARACTERS + "+")


def is_user_name(text: str) -> bool:
    """Is `text` a letter or `_`, and up to 31 letters, digits, `_`, `-` or `.`?"""
    is_bounded = 0 < len(text) <= USER_NAME_MAX
    return is_bounded and text[0] in LETTERS + "_" and _made_of(text, SERVICE_CHARACTERS)


def is_call_target(text: str) -> bool:
    """Is `text` what a call may name as its target: a VM, its UUID, a keyword, or nothing?"""
    if len(text) > CALL_TARGET_MAX:
        return False
    kind, colon, rest = text.partition(":")
    if colon:
        if kind == "uuid":
            return bool(rest) and _made_of(rest, _DIGITS + "abcdef-")
        return kind == "@dispvm" and is_vm_name(rest)
    return text in ("", "@default", "@adminvm", "@dispvm") or is_vm_name(text)


def is_call_id(text: str) -> bool:
    """Is `text` 32 hexadecimal digits, in lower case?"""
    return len(text) == CALL_ID_LENGTH and _made_of(text, HEX_DIGITS)


def frontend_names() -> tuple[str, ...]:
    """The block device names for lent devices, in the order in which they are used."""
    return FRONTENDS


def shown(untrusted: object) -> str:
    """`untrusted` in quotes, escaped and bounded, for an error message."""
    if not isinstance(untrusted, str):
        return f"a value of type {type(untrusted).__name__}"
    if len(untrusted) <= SHOWN_MAX:
        return escaped_text(repr(untrusted))
    return f"{escaped_text(repr(untrusted[:SHOWN_MAX]))}... ({len(untrusted)} characters)"


def _refuse(untrusted: object, what: str, right: str) -> NoReturn:
    raise ValueError(f"{shown(untrusted)} is not {what}: {right}")


def parse_vm_name(untrusted: object) -> str:
    """The name of a VM; ValueError says why it is none."""
    if isinstance(untrusted, str) and is_vm_name(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "a VM name",
        f"a letter, then at most {VM_NAME_MAX - 1} letters, digits, '_' or '-', as in sys-usb",
    )


def parse_device_id(untrusted: object) -> str:
    """The id of a device within its VM; ValueError says why it is none."""
    if isinstance(untrusted, str) and is_device_id(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "a device id",
        f"a letter or digit, then at most {DEVICE_ID_MAX - 1} letters, digits, '.', '_' or '-', "
        "as in sda1",
    )


def parse_device_name(untrusted: object) -> DeviceName:
    """`SOURCE:ID` as a `DeviceName`; ValueError says why it is none."""
    if not isinstance(untrusted, str) or ":" not in untrusted:
        _refuse(untrusted, "a device", "SOURCE:ID is meant, as in sys-usb:sda1")
    untrusted_backend, _, untrusted_id = untrusted.partition(":")
    return DeviceName(parse_vm_name(untrusted_backend), parse_device_id(untrusted_id))


def parse_device_class(untrusted: object) -> str:
    """The name of one of `device_classes.CLASSES`; ValueError says what is wrong."""
    if isinstance(untrusted, str) and class_named(untrusted) is not None:
        return untrusted
    _refuse(untrusted, "a device class", f"one of {', '.join(class_names())} is meant")


def parse_service_name(untrusted: object) -> str:
    """The name of a service without its argument; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_service_name(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "the name of a service",
        f"a letter, digit or '_', then at most {SERVICE_NAME_MAX - 1} of these, '.' or '-'",
    )


def parse_service_argument(untrusted: object) -> str:
    """The argument of a service with its `+`; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_service_argument(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "the argument of a service",
        f"a '+', then at most {SERVICE_ARGUMENT_MAX - 1} letters, digits, '.', '_', '-' or '+'",
    )


def parse_user_name(untrusted: object) -> str:
    """The name of a user of a VM; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_user_name(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "a user's name",
        f"a letter or '_', then at most {USER_NAME_MAX - 1} letters, digits, '.', '_' or '-'",
    )


def parse_call_target(untrusted: object) -> str:
    """The target that a call names; ValueError says what is wrong with it."""
    if isinstance(untrusted, str) and is_call_target(untrusted):
        return untrusted
    _refuse(
        untrusted,
        "the target of a call",
        "a VM's name, or one of @default @adminvm @dispvm @dispvm:VM uuid:UUID",
    )


def parse_name_in_target(untrusted: object) -> str:
    """The name of a lent device in its VM; ValueError says what is wrong with it. Which names there
    are is for the device's class to say (`device_classes`)."""
    if isinstance(untrusted, str) and is_device_id(untrusted):
        return untrusted
    _refuse(untrusted, "a name for a lent device", "letters and digits are meant, as in xvdi")


def harmless_text(untrusted: str, limit: int = DESCRIPTION_MAX) -> str:
    """`untrusted` with everything as `_` but harmless ASCII and the letters and digits of all
    scripts; at most `limit` bytes of UTF-8, so that no script makes an answer longer than others.

    A cut text ends in `...`. The function is idempotent.
    """
    if len(untrusted) <= limit and _made_of(untrusted, HARMLESS_CHARACTERS):
        return untrusted  # as nearly all are
    text = untrusted[: limit + 1]
    if text.isascii():
        text = "".join([character if character in _HARMLESS else "_" for character in text])
        return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."[:limit]
    text = harmless_letters(text)
    raw = text.encode("utf-8")
    if len(raw) <= limit:
        return text
    return raw[: max(0, limit - 3)].decode("utf-8", "ignore") + "..."[:limit]


def harmless_letters(untrusted: str) -> str:
    """As `harmless_text`, character for character and without a limit."""
    kept: list[str] = []
    marks = MARKS_MAX  # a mark needs a letter before it
    for character in untrusted:
        kind = category(character)
        is_letter = kind[0] == _LETTER and character not in _UNSEEN_CHARACTERS
        is_mark = kind[0] == _MARK and character not in _UNSEEN_CHARACTERS and marks < MARKS_MAX
        is_kept = is_letter or is_mark or kind == _DIGIT or character in _HARMLESS
        kept.append(character if is_kept else "_")
        marks = marks + 1 if is_mark else 0 if is_letter else MARKS_MAX
    return "".join(kept)


def is_printable(text: str) -> bool:
    """Is `text` one line of visible characters and blanks?"""
    return text.isprintable() and (text.isascii() or _UNSEEN_CHARACTERS.isdisjoint(text))


def printable_text(text: str, limit: int) -> str:
    """`text` of any language for one line: no control or format characters and no invisible ones
    (they become `_`), and at most `limit` characters (cut with `...`)."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text  # as nearly all are
    text = text[: limit + 1]
    if not is_printable(text):
        text = "".join([character if is_printable(character) else "_" for character in text])
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."[:limit]


def printable_value(value: Any, limit: int) -> Any:
    """A value from the codec, with `printable_text` of every text in it, names of maps too."""
    if isinstance(value, str):
        return printable_text(value, limit)
    if isinstance(value, list):
        return [printable_value(each, limit) for each in value]
    if isinstance(value, dict):
        return {
            printable_text(name, limit): printable_value(each, limit)
            for name, each in value.items()
        }
    return value


def escaped_text(text: str) -> str:
    """`text` from any source in one line: everything but printable ASCII and the letters, digits
    and accents of all scripts is escaped, as in `\\n`, `\\x1b` or `\\u202e`.

    For all that is shown to people; the function is idempotent.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        [
            each
            if " " <= each <= "~" or (each == kept and not each.isascii())
            else each.encode("unicode_escape").decode("ascii")
            for each, kept in zip(text, harmless_letters(text), strict=True)
        ]
    )


def natural_key(text: str) -> tuple[str, str]:
    """A sort key under which numbers within a text count as numbers: sda2 before sda10.

    The first part is the text with each number led by a character that is less than any in a text,
    and by its length; the second keeps 01 and 1 apart, in the same order always. The numbers in the
    id of a PCI device are hexadecimal and of fixed lengths, so it is its own key: 00_02.0 before
    00_1f.0.
    """
    end, last = len(text), ""
    if "_" in text and (last := _pci_key(text.rpartition(":")[2])):
        end = text.rfind(":") + 1
    key: list[str] = []
    at = 0
    while at < end:
        start = at
        is_number = text[at] in _DIGITS
        while at < end and (text[at] in _DIGITS) == is_number:
            at += 1
        run = text[start:at]
        # int() refuses more than 4,300 digits; by length and text, any number of them sorts.
        digits = run.lstrip("0")
        key.append(f"\x01{chr(len(digits))}{digits}" if is_number else run)
    return "".join(key) + last, text


def _pci_key(text: str) -> str:
    """The key of `[DOMAIN_]BUS_SLOT.FUNCTION`, with a `-SLOT.FUNCTION` for each bridge before it
    (pci_names); "" for anything else. Domains that are named come after the usual one."""
    root, *below = text.split("-")
    *buses, slot = root.split("_")
    if not 1 <= len(buses) <= 2 or len(buses[-1]) != 2 or not _HEX.issuperset("".join(buses)):
        return ""
    is_it = all(
        len(each) == 4 and each[2] == "." and _HEX.issuperset(each[:2]) and each[3] in _DIGITS
        for each in (slot, *below)
    )
    return ("", "g")[len(buses) - 1] + text if is_it else ""
