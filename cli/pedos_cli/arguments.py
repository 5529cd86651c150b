"""The parsers of all programs here, and the checks that need no service."""

from __future__ import annotations

import argparse
import os

from pedos_protocol import VERSION
from pedos_protocol.device_classes import (
    CLASSES,
    FALSE,
    OPTION_NAME_MAX,
    OPTION_VALUE_MAX,
    OPTIONS_MAX,
)
from pedos_protocol.names import (
    IDENTITY_MAX,
    is_identity,
    is_vm_name,
    parse_device_id,
    parse_device_name,
    parse_vm_name,
)

from pedos_cli import output
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from pedos_protocol.names import DeviceName

# argparse looks up a translation of each of its own words, which would not cover ours; the lookup,
# and the module `locale` for it, take longer than the parsing.
setattr(argparse, "_", lambda text: text)  # noqa: B010 - it is not in the stubs

TELLING = ("--help", "--version", "--list-device-classes")
"""Options that only print something: the rest of the command line does not matter."""

LEVELS = 3
"""Places where the global options may stand: before the class, before the action, after it."""

VMS_MAX = 256
"""VM names of one command: more VMs than a machine runs; a request with all of them fits a
frame."""

WILDCARD = "*"
"""In place of a device's id or identity: any port, or any device."""

HELP_WIDTH_MAX = 100
"""Columns that help text uses at most: longer lines are hard to read."""


class UsageError(Exception):
    """The command line is wrong: a sentence, and optionally a command to try instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line ends of examples, and does not import shutil for the terminal's
    width."""

    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 26) -> None:
        super().__init__(prog, indent_increment, max_help_position, width=_help_width())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # Only examples contain line ends of their own; a description has none.
        return text if "\n" in text else _wrapped(text, width)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, accepts no abbreviations, and lets options stand
    anywhere."""

    def __init__(self, *, prog: str, description: str, epilog: str, level: int = 0) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._intermixed = False
        #: Words that may stand in place of the first argument, each with a parser of its own.
        self.instead: dict[str, Callable[[], Parser]] = {}
        self.add_argument("-h", "--help", action="help", help="show this help message and exit")
        if level == 0:
            self.add_argument(
                "--version", action="version", version=f"{prog} {VERSION}",
                help="show the version and exit",
            )  # fmt: skip
        # Each place counts separately: argparse lets an inner parser overwrite the outer's count.
        for short, long, what in (("-v", "--verbose", "increase"), ("-q", "--quiet", "decrease")):
            self.add_argument(
                short, long, action="count", default=0, dest=f"{long[2:]}_{level}",
                help=f"{what} verbosity",
            )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")

    def _print_message(self, message: str, _file: object = None) -> None:
        # argparse's own version ignores an output that cannot be written. Everything that it prints
        # here is what the user asked for: errors are raised.
        output.put_text(message)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse with options between the positionals: `detach work -v sys-usb:sda` is one device.

        argparse by itself gives an optional positional its (empty) share before the option.
        """
        positionals = self._get_positional_actions()
        if self._intermixed or any(each.nargs == argparse.PARSER for each in positionals):
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False
        if unknown:  # raised here, so that the hint is this action's help and not the program's
            self.error("unrecognized arguments: " + " ".join(unknown))
        return parsed, unknown


def verbosity(args: argparse.Namespace) -> int:
    """Return how often -v was given less how often -q was, wherever they stood."""
    return sum(
        getattr(args, f"verbose_{level}", 0) - getattr(args, f"quiet_{level}", 0)
        for level in range(LEVELS)
    )


def examples(*lines: tuple[str, str]) -> str:
    """Return the epilog with examples: each a command line and what it does."""
    return "examples:\n" + "\n".join(f"  {command}\n      {what}" for command, what in lines)


def vm_name(text: str) -> str:
    """Return `text` if it is a VM's name; raise UsageError with the reason if not."""
    try:
        return parse_vm_name(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def vm_names(texts: Sequence[str]) -> list[str]:
    """Return the names in their order, each once; raise UsageError for the first bad one."""
    names = list(dict.fromkeys(vm_name(text) for text in texts))
    if len(names) > VMS_MAX:
        raise UsageError(f"{len(names)} VMs are named, and {VMS_MAX} is the most")
    return names


def device_name(text: str) -> DeviceName:
    """Return SOURCE and ID of `text`; raise UsageError with the reason if it is not SOURCE:ID."""
    try:
        return parse_device_name(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def target_and_device(vm: str, device: str) -> tuple[str, DeviceName]:
    """Return both names checked; if they were given the wrong way round, say so."""
    _check_order(vm, device)
    return vm_name(vm), device_name(device)


def target_and_pinned(vm: str, device: str) -> tuple[str, Pinned]:
    """As `target_and_device`, of a device whose identity may be named."""
    _check_order(vm, device)
    return vm_name(vm), pinned(device)


def _check_order(vm: str, device: str) -> None:
    if ":" in vm and is_vm_name(device):
        raise UsageError(
            f"the VM comes first, then the device: '{show(vm, 128)}' is not a VM's name",
        )


class Pinned:
    """A device of `backend` as `SOURCE:ID[:IDENTITY]` names it: by its port, by its identity, or by
    both. `id` and `identity` may be WILDCARD; `identity` is None if it is not named."""

    __slots__ = ("backend", "id", "identity")

    def __init__(self, backend: str, id: str, identity: str | None) -> None:  # noqa: A002
        self.backend = backend
        self.id = id
        self.identity = identity

    def __str__(self) -> str:
        at = f"{self.backend}:{self.id}"
        return at if self.identity is None else f"{at}:{self.identity}"

    @property
    def device(self) -> str | None:
        """The id; None for any port."""
        return None if self.id == WILDCARD else self.id

    @property
    def known_identity(self) -> str | None:
        """The identity; None if it is not named, or may be any."""
        return None if self.identity == WILDCARD else self.identity


def pinned(text: str) -> Pinned:
    """Return what `text` names; raise UsageError with the reason if it is not
    SOURCE:ID[:IDENTITY]."""
    backend, colon, rest = text.partition(":")
    if not colon:
        device_name(text)  # it says what is meant
    name, colon, identity = rest.partition(":")
    try:
        parse_vm_name(backend)
        if name != WILDCARD:
            parse_device_id(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if colon and identity != WILDCARD and not (identity and is_identity(identity)):
        raise UsageError(
            f"'{show(identity, 128)}' is not an identity: 1 to {IDENTITY_MAX} letters, digits, "
            "':', '.', '_' or '-', as list -v shows it"
        )
    return Pinned(backend, name, identity if colon else None)


def add_options(parser: Parser) -> None:
    """Add the options of an attachment, as `options` takes them."""
    *others, last = [each.shown_example for known in CLASSES for each in known.options]
    parser.add_argument(
        "-o", "--option", metavar="NAME=VALUE", dest="options", action="append", default=[],
        help=f"an option of the class, such as {', '.join(others)} or {last}; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--ro", dest="read_only", action="store_true", help="the same as -o read-only=yes"
    )


def options(texts: Sequence[str], read_only: bool = False) -> dict[str, str]:
    """Return the -o options as a map; raise UsageError for a malformed or repeated one.

    The service checks which names and values a class knows, because the service acts on them.
    """
    parsed: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(
                f"option '{show(name, 128)}' has no value: "
                "an option is written NAME=VALUE, as in -o read-only=yes"
            )
        if not _is_option_name(name):
            raise UsageError(
                f"'{show(name, 128)}' is not an option's name: lower-case letters, digits and "
                f"hyphens, at most {OPTION_NAME_MAX}, as in -o read-only=yes"
            )
        if not (0 < len(value) <= OPTION_VALUE_MAX and value.isascii() and value.isprintable()):
            raise UsageError(
                f"option '{name}' cannot have the value '{show(value, 128)}': a value is 1 to "
                f"{OPTION_VALUE_MAX} printable ASCII characters"
            )
        if name in parsed:
            raise UsageError(f"option '{name}' is given twice")
        parsed[name] = value
    if read_only:
        if parsed.get("read-only", "yes").lower() in FALSE:
            raise UsageError(f"--ro contradicts -o read-only={parsed['read-only']}")
        parsed.setdefault("read-only", "yes")
    if len(parsed) > OPTIONS_MAX:
        raise UsageError(f"{len(parsed)} options are given, and {OPTIONS_MAX} is the most")
    return parsed


def _is_option_name(text: str) -> bool:
    bare = text.replace("-", "a")
    return (
        0 < len(text) <= OPTION_NAME_MAX
        and bare.isascii()
        and bare.isalnum()
        and bare == bare.lower()
        and not text.startswith("-")
    )


def _wrapped(text: str, width: int) -> str:
    """Return `text` in lines of at most `width` columns, without importing textwrap."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "\n".join(lines)


def _help_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and 0 < len(columns) <= 4:
        width = int(columns)
    else:
        try:
            width = os.get_terminal_size(1).columns
        except OSError:
            width = 80
    return max(40, min(width, HELP_WIDTH_MAX)) - 2
