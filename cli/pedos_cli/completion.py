"""Completion for the shell, from the same parsers that read the command line.

It speaks the protocol of argcomplete's shell functions, so `register-python-argcomplete qvm-device`
works, and so do this project's files for bash, zsh and fish in `completions`: the shell puts the
line into the environment and reads candidates from file descriptor 8. This module does not use
argcomplete, because its import alone takes longer than the whole completion.
"""

from __future__ import annotations

import argparse
import os

# `signal` itself would import enum, without which a completion starts faster.
from _signal import (  # type: ignore[import-not-found]
    ITIMER_REAL,
    SIGALRM,
    setitimer,
    signal,
)

from pedos_protocol.device_classes import class_named, services
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.names import is_device_id, is_identity, is_vm_name, natural_key

from pedos_cli import client, place
from pedos_cli.answers import DONE, take, take_maps
from pedos_cli.arguments import WILDCARD
from pedos_cli.classes import OF_HEARD, classes_there_are
from pedos_cli.devices import assignment_name, device_name, list_assignments, list_devices
from pedos_cli.pages import answered
from pedos_cli.policy_files import ANY, NAME_CHARACTERS, NEW
from pedos_cli.policy_files import names as policy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pedos_cli.arguments import Parser

TIMEOUT_S = 0.5
"""Seconds that a Tab waits for the service; after that it offers no names."""

DEADLINE_S = 1.0
"""Seconds after which a Tab has no candidates, however many requests it takes, and whatever hangs:
the shell takes no key meanwhile."""

ANSWER_FD = 8
"""The descriptor that argcomplete's shell function reads the candidates from."""

DEFAULT_SEPARATOR = "\013"
DEFAULT_WORD_BREAKS = "\"'@><=;|&(:"


class Position:
    """The cursor's place in the command line: its parser, and what comes next there; `prefix` is
    what stands there already."""

    def __init__(
        self, parser: argparse.ArgumentParser, words: Iterable[str], prefix: str = ""
    ) -> None:
        self.prefix = prefix
        self.device_class: str | None = parser.get_default("device_class")
        self._enter(parser)
        for word in words:
            self._pass(word)

    def expected(self) -> argparse.Action | None:
        """Return what a word here would be a value of."""
        return self._pending or (self._positionals[0] if self._positionals else None)

    def _enter(self, parser: argparse.ArgumentParser) -> None:
        actions = parser._actions
        self.vm: str | None = None
        self.action = parser.get_default("action")
        self.options = {name: each for each in actions for name in each.option_strings}
        self._positionals = [each for each in actions if not each.option_strings]
        self._pending: argparse.Action | None = None
        self.instead: dict[str, Callable[[], Parser]] = getattr(parser, "instead", {})

    def _pass(self, word: str) -> None:
        expected = self.expected()
        if word.startswith("-"):
            option = self.options.get(word)
            self._pending = option if option is not None and option.nargs != 0 else None
        elif self._pending is not None:
            if self._pending.nargs is None:  # one value; a `+` goes on until the next option
                self._pending = None
        elif word in self.instead:
            self._enter(self.instead[word]())
        elif expected is not None and not _fits(expected, word):
            self._positionals, self.instead = [], {}  # nothing fits after a word that does not
        elif isinstance(expected, argparse._SubParsersAction):
            self._enter(expected.choices[word])
        elif expected is not None:
            if expected.dest == "device_class":
                self.device_class = word
            elif expected.dest == "vm":
                self.vm = word
            self.instead = {}
            if expected.nargs not in ("*", "+"):
                self._positionals.pop(0)


def complete(parser: argparse.ArgumentParser) -> int:
    """Answer the shell; never fail and print nothing else, as that would garble the prompt."""
    signal(SIGALRM, lambda _number, _frame: os._exit(DONE))
    setitimer(ITIMER_REAL, DEADLINE_S)
    line = os.environb.get(b"COMP_LINE", b"").decode("utf-8", "replace")
    point = os.environ.get("COMP_POINT", "")
    if point.isdigit():
        line = line[: int(point)]
    words = line.split()
    word = words.pop() if words and not line[-1].isspace() else ""
    prefix = word.lstrip("'\"")  # the `*` of `sys-usb:*:` has to be quoted
    found = [each for each in candidates(parser, words[1:], prefix) if each.startswith(prefix)]
    # The shell splits words at its word breaks and replaces only the part behind the last of them.
    # Within quotes there are none.
    breaks = os.environ.get("_ARGCOMPLETE_COMP_WORDBREAKS", DEFAULT_WORD_BREAKS)
    if word != prefix:
        breaks = ""
    kept = max((prefix.rfind(each) for each in breaks), default=-1) + 1
    separator = os.environ.get("_ARGCOMPLETE_IFS", os.environ.get("IFS", DEFAULT_SEPARATOR))
    try:  # noqa: SIM105  (contextlib takes 4 ms to import, a third of an empty Python)
        os.write(ANSWER_FD, separator.join(each[kept:] for each in found).encode())
    except OSError:  # no descriptor 8: only the variable was set, and no shell reads the answer
        pass
    return DONE


def candidates(parser: argparse.ArgumentParser, words: Iterable[str], prefix: str) -> list[str]:
    """Return the candidates at the cursor after `words`, which exclude the program's name."""
    position = Position(parser, words, prefix)
    if prefix.startswith("-"):
        return sorted(name for name in position.options if name.startswith("--"))
    expected = position.expected()
    if isinstance(expected, argparse._SubParsersAction):
        # Without the aliases: they save typing only for users who know them already.
        names = [each.dest for each in expected._choices_actions]
        return [each for each in names if each not in OF_HEARD or _is_heard(position)]
    source = SOURCES.get(expected.metavar) if expected is not None else None
    if source is None and expected is not None and expected.choices is not None:
        return list(expected.choices)
    try:
        found = source(position) if source is not None else []
        return [*found, *position.instead]
    except (CallError, ProtocolError, OSError, client.Unreachable):
        return []


def _ask(method: str, params: dict[str, object]) -> dict[str, object]:
    service = client.connect()
    try:
        return service.call(method, params, TIMEOUT_S)
    finally:
        service.close()


def _fits(expected: argparse.Action, word: str) -> bool:
    """Say whether the word may stand there; a class may be known only to the service."""
    if expected.choices is None or word in expected.choices:
        return True
    return expected.dest == "device_class" and class_named(word, classes_there_are()) is not None


def _classes(_: Position) -> list[str]:
    return [each.name for each in classes_there_are()]


def _is_heard(position: Position) -> bool:
    named = position.device_class
    known = class_named(named) or class_named(named, classes_there_are())
    return known is not None and known.heard


def _vms(_: Position) -> list[str]:
    answer = _ask("vm.list", {})
    names = (take(each, "name", str) for each in take_maps(answer, "vms"))
    return sorted(filter(is_vm_name, names), key=natural_key)


def _devices(position: Position) -> list[str]:
    return list(map(device_name, _proper_devices(position)))


def _proper_devices(position: Position) -> list[dict[str, object]]:
    """Only those with valid names: a candidate becomes part of a command line."""
    devices, _missing, _answer = list_devices(_ask, str(position.device_class))
    return [
        each
        for each in devices
        if is_vm_name(take(each, "backend", str)) and is_device_id(take(each, "device", str))
    ]


def _pinned(position: Position) -> list[str]:
    """Devices; and with their identities, once a word has come to that."""
    if position.action == "unassign":
        return _assignments(position)
    devices = _proper_devices(position)
    if position.action == "detach":
        devices = [each for each in devices if position.vm in _users(each)]
    if position.prefix.count(":") < 2:
        return list(map(device_name, devices))
    identities = [each for each in devices if _proper_identity(each)]
    found = [(device_name(each), each["identity"]) for each in identities]
    if position.action == "assign":
        found += [(f"{each['backend']}:{WILDCARD}", each["identity"]) for each in identities]
    return [f"{at}:{identity}" for at, identity in found]


def _assignments(position: Position) -> list[str]:
    vms = None if position.vm is None else [position.vm]
    assignments, _answer = list_assignments(_ask, str(position.device_class), vms)
    return [
        assignment_name(each, take(each, "backend", str))
        for each in assignments
        if each.get("vm") == position.vm
        and is_vm_name(take(each, "backend", str))
        and (each.get("device") is None or is_device_id(take(each, "device", str)))
        and (not each.get("identity") or _proper_identity(each))
    ]


def _proper_identity(each: Mapping[str, object]) -> bool:
    identity = take(each, "identity", str)
    return bool(identity) and is_identity(identity)


def _options(position: Position) -> list[str]:
    named = position.device_class
    known = class_named(named) or class_named(named, classes_there_are())
    return [
        f"{option.name}={value}"
        for option in (known.options if known else ())
        for value in option.values
        if value != option.default
    ]


def _services(_: Position) -> list[str]:
    return list(services(names=[each.name for each in classes_there_are()]))


def _policy_files(_: Position) -> list[str]:
    found: dict[str, None] = {}
    try:
        folders = place.policy_path().split(":")
    except CallError:  # their place is not known
        return []
    for folder in folders:
        try:
            # Only valid names, here too.
            proper = (name for name in policy_names(folder) if set(name) <= NAME_CHARACTERS)
            found.update(dict.fromkeys(proper))
        except CallError:  # a missing folder has no files
            continue
    return sorted(found)


def _sources(position: Position) -> list[str]:
    return sorted({"dom0", *_vms(position)}, key=natural_key)


def _replaced(_: Position) -> list[str]:
    return [NEW, ANY]


def _calls(_: Position) -> list[str]:
    from pedos_cli.calls import ID_SHOWN, call_id, call_pages  # noqa: PLC0415  (few complete them)

    found, _answer = answered(_ask, call_pages())
    return sorted(call_id(each)[:ID_SHOWN] for each in found if call_id(each).isalnum())


def _users(device: Mapping[str, object]) -> set[str]:
    uses = [*take_maps(device, "attachments"), *take_maps(device, "assignments")]
    return {take(each, "vm", str) for each in uses}


SOURCES: dict[object, Callable[[Position], list[str]]] = {
    "DEVICE_CLASS": _classes,
    "VM": _vms,
    "SOURCE:ID": _devices,
    "SOURCE:ID[:IDENTITY]": _pinned,
    "NAME=VALUE": _options,
    "SERVICE": _services,
    "SOURCE": _sources,
    "TARGET": _sources,
    "NAME": _policy_files,
    "CALL": _calls,
    "REPLACES": _replaced,
}
"""Where the values of an argument come from, by the argument's name in the help."""
