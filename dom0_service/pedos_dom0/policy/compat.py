"""`!compat-4.0`: the files of the reference's release 4.0, one for each service.

Such a file is named SERVICE or SERVICE+ARGUMENT; its lines are SOURCE TARGET ACTION[,NAME=VALUE...]
with `$` for `@`. In that release, a file for an argument replaced the one for its service, so here
it ends in a rule that denies the rest. After a file for a service the policy continues; otherwise
its other rules for that service would never be reached.
"""

from __future__ import annotations

from pathlib import Path

from .files import FILES_MAX, Files, shown_path
from .model import PolicyError
from .rules import argument_problem
from .tokens import service_problem

#: Where the reference system has them.
DIRECTORY = Path("/etc/qubes-rpc/policy")

# Both are as long as what they stand for, so that columns stay the same.
_OLD_INCLUDE, _INCLUDE = b"@include:", b"!include "
_THE_REST = b"\n* * deny\n"


def read(
    directory: Path, files: Files
) -> tuple[list[tuple[str, str, str, bytes | None]], list[PolicyError]]:
    """(service, argument, name, lines for that service) of each file; None for an unreadable one.

    Files for an argument precede the file for the whole service. A missing folder has no files.
    """
    names, failed = files.every_name(directory)
    errors: list[PolicyError] = []
    if failed:
        where = shown_path(directory)
        errors.append(PolicyError(where, 0, 0, f"the folder cannot be read: {failed}"))
    if len(names) > FILES_MAX:
        many = f"more than {FILES_MAX} policy files in one folder"
        errors.append(PolicyError(shown_path(directory), 0, 0, many))
    found = []
    for name in sorted(names, key=_order)[:FILES_MAX]:
        service, plus, argument = name.partition("+")
        why = service_problem(service)
        if why is None and plus:
            why = argument_problem(service, plus + argument)
        path = shown_path(directory / name)
        if why is not None:
            errors.append(PolicyError(path, 0, 0, *why))
            continue
        content = files.read(directory / name, path)
        lines = None
        if isinstance(content, bytes):
            lines = _translated(content) + (_THE_REST if plus else b"")
        found.append((service, plus + argument if plus else "*", path, lines))
    return found, errors


def _order(name: str) -> tuple[str, bool, str]:
    service, plus, argument = name.partition("+")
    return service, not plus, argument


def _translated(content: bytes) -> bytes:
    return b"\n".join(map(_translated_line, content.split(b"\n")))


def _translated_line(line: bytes) -> bytes:
    if line.lstrip().startswith(b"#"):
        return line
    new = line.replace(b"$", b"@").replace(b",", b" ")
    return _INCLUDE + new[len(_OLD_INCLUDE) :] if new.startswith(_OLD_INCLUDE) else new
