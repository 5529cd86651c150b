"""One file of `vms.d`: what an administrator says of VMs, for rules to speak of.

[vm.work]                      or just [work]
type = "AppVM"                 AppVM (unless said), TemplateVM, StandaloneVM, DispVM, RemoteVM
tags = ["office", "trusted"]   for @tag:office
default-dispvm = "browsing"    the template of the disposables that it gets, for @dispvm
template-for-dispvms = false   may disposables be made of it, for @dispvm:work
internal = false               true: it is never offered as a target when dom0's user is asked
uuid = "6b9f..."               for uuid:6b9f...

Reading is pure; every mistake of a file is found at once, each with its line and key.
"""

from __future__ import annotations

import tomllib
import uuid
from typing import Any

import attrs
from pedos_protocol.fields import TAGS_MAX
from pedos_protocol.frozen import frozen
from pedos_protocol.names import is_vm_name, printable_text, shown

from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.policy.system import ADMIN_TYPE, VmFacts
from pedos_dom0.vms import toml_lines
from pedos_dom0.vms.toml_lines import kind_of

# A file of some hundred VMs; bounded because it is read whole.
FILE_MAX = 1024 * 1024
# Errors of one file to report: after so many, it is another kind of file.
ERRORS_MAX = 32
TAG_MAX = 64  # characters
TYPES = ("AppVM", "TemplateVM", "StandaloneVM", "DispVM", "RemoteVM")
KEYS = ("type", "tags", "default-dispvm", "template-for-dispvms", "internal", "uuid")
# The facts that may be set for dom0: the others are fixed.
DOM0_KEYS = ("tags", "default-dispvm", "uuid")
# The table that may precede a VM's name, as in pedos.toml.
PREFIX = "vm"
_TAG_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
# Characters of an offending line that an error shows.
_LINE_SHOWN = 200


@attrs.frozen(order=True)
class FactsError:
    """A mistake. `line` and `column` count from 1; 0 is unknown. `text` is the line itself."""

    file: str
    line: int
    column: int
    message: str
    help: str = ""
    text: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" + (f"; {self.help}" if self.help else "")


@frozen
class Said:
    """The facts of a file about one VM, and their line."""

    facts: VmFacts
    line: int


class _Mistake(Exception):  # noqa: N818 - collected
    def __init__(self, where: tuple[str, ...], message: str, right: str = "") -> None:
        super().__init__(message)
        self.where, self.message, self.right = where, message, right


def parse(file: str, data: bytes) -> tuple[dict[str, Said], list[FactsError]]:
    """The content of the file, by VM; with any error it must not be used."""
    if len(data) > FILE_MAX:
        return {}, [FactsError(file, 0, 0, f"more than {FILE_MAX} bytes")]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return {}, [FactsError(file, line, 0, "is not UTF-8", "save it as UTF-8 text")]
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, column, message = toml_lines.syntax_error(error, text)
        what = f"not valid TOML: {message}"
        shown_line = _shown(toml_lines.Lines(text).text(line))
        return {}, [FactsError(file, line, column or 0, what, text=shown_line)]
    except RecursionError:  # a value of deeply nested lists; only a malicious file has one
        return {}, [FactsError(file, 0, 0, "not valid TOML: it nests too deeply")]
    lines = toml_lines.Lines(text)
    said: dict[str, Said] = {}
    errors: list[FactsError] = []
    found = 0
    for where, untrusted in _tables(document):
        try:
            facts = _vm(where, untrusted)
            if facts.name in said:
                raise _Mistake(where, f"{facts.name} is described twice", "put it into one table")
            said[facts.name] = Said(facts, lines.of(where) or 0)
        except _Mistake as mistake:
            found += 1
            if found <= ERRORS_MAX:
                line = lines.of(mistake.where) or 0
                message = f"{toml_lines.shown_key(mistake.where)}: {mistake.message}"
                text = _shown(lines.text(line))
                errors.append(FactsError(file, line, 0, message, mistake.right, text))
    if found > ERRORS_MAX:
        errors.append(FactsError(file, 0, 0, f"{found - ERRORS_MAX} errors more"))
    return said, errors


def _shown(line: str) -> str:
    return printable_text(line, _LINE_SHOWN)


def _tables(document: dict[str, Any]) -> list[tuple[tuple[str, ...], object]]:
    """The VMs' tables with their paths, whichever of the two ways they are written in."""
    tables: list[tuple[tuple[str, ...], object]] = []
    for name, value in document.items():
        if name == PREFIX and isinstance(value, dict):
            tables += [((PREFIX, inner), table) for inner, table in value.items()]
        else:
            tables.append(((name,), value))
    return tables


def _vm(where: tuple[str, ...], untrusted: object) -> VmFacts:
    name = where[-1]
    if not isinstance(untrusted, dict):
        right = f"a VM is a table, as in [{PREFIX}.work]"
        if where == (PREFIX, name) and name in KEYS:
            right = f"a VM that is called {PREFIX} is written [{PREFIX}.{PREFIX}]"
        raise _Mistake(where, f"is {kind_of(untrusted)}", right)
    if not is_vm_name(name):
        right = "a letter, then at most 30 letters, digits, '_' or '-'"
        raise _Mistake(where, f"{shown(name)} is not a VM name", right)
    if name != DOM0_NAME and name.lower() == DOM0_NAME:
        raise _Mistake(where, f"{shown(name)} is not a VM", f"dom0 is written {DOM0_NAME}")
    known = DOM0_KEYS if name == DOM0_NAME else KEYS
    for key in untrusted:
        if key not in known:
            raise _Mistake((*where, key), "unknown key", f"known here: {', '.join(known)}")
    facts = _Table(where, untrusted)
    return VmFacts(
        name=name,
        type=ADMIN_TYPE if name == DOM0_NAME else facts.type(),
        tags=facts.tags(),
        uuid=facts.uuid(),
        default_dispvm=facts.vm("default-dispvm"),
        template_for_dispvms=facts.truth("template-for-dispvms"),
        internal=facts.truth("internal"),
    )


class _Table:
    """One VM's table; each method reads one kind of value."""

    def __init__(self, where: tuple[str, ...], untrusted: dict[str, Any]) -> None:
        self._where = where
        self._untrusted = untrusted

    def _wrong(self, key: str, value: object, right: str) -> _Mistake:
        what = shown(value) if isinstance(value, str) else kind_of(value)
        return _Mistake((*self._where, key), f"cannot be {what}", right)

    def type(self) -> str:
        value = self._untrusted.get("type", TYPES[0])
        if value not in TYPES:
            raise self._wrong("type", value, f"it is one of {', '.join(TYPES)}")
        return str(value)

    def tags(self) -> frozenset[str]:
        value = self._untrusted.get("tags", [])
        right = f"a list of strings of A-Z a-z 0-9 _ . -, each at most {TAG_MAX} characters long"
        if not isinstance(value, list):
            raise self._wrong("tags", value, right)
        for tag in value:
            if not isinstance(tag, str) or not 0 < len(tag) <= TAG_MAX:
                raise self._wrong("tags", tag, right)
            if tag.strip(_TAG_CHARACTERS):
                raise self._wrong("tags", tag, right)
        if len(set(value)) > TAGS_MAX:
            raise self._wrong("tags", value, f"at most {TAGS_MAX} tags")
        return frozenset(value)

    def vm(self, key: str) -> str | None:
        value = self._untrusted.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not is_vm_name(value):
            raise self._wrong(key, value, 'it is the name of a VM, or "" for none')
        return value

    def truth(self, key: str) -> bool:
        value = self._untrusted.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "it is true or false, without quotes")
        return value

    def uuid(self) -> str:
        value = self._untrusted.get("uuid", "")
        if value == "":
            return ""
        try:
            return str(uuid.UUID(value))
        except (ValueError, TypeError, AttributeError):
            right = "32 hexadecimal digits, as xl or virsh show them"
            raise self._wrong("uuid", value, right) from None
