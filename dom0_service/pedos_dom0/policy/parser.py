"""From the text of a policy file to its rules, or to everything that is wrong with it.

One line is one rule: SERVICE ARGUMENT SOURCE TARGET ACTION [NAME=VALUE ...]. Reading goes on after
an error, so that an administrator sees all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from types import MappingProxyType

from attrs import frozen
from pedos_protocol.names import shown

from .model import NO_PARAMETERS, PolicyError, Rule, Selector
from .tokens import DEVICE_SERVICE_PREFIX, service_problem, vm_token_problem

__all__ = ["PolicyError", "parse_bytes", "parse_file"]

# Characters of a rule. One is shown whole in answers, logs and error messages, and 512 is what a
# message carries of a text. Comments may be as long as they like.
LINE_MAX = 512
# Several times the largest policy that anybody is known to have; keeps a wrong file (a disk image
# named 50-x.policy) from being read and parsed for minutes.
FILE_MAX = 4 * 1024 * 1024
# Per file. Five times the 10,000 that the performance gates speak of.
RULES_MAX = 50_000
# Per file: all errors of a file that people write, but not one for each line of a binary file.
ERRORS_MAX = 500

COLUMNS = ("SERVICE", "ARGUMENT", "SOURCE", "TARGET", "ACTION")
ACTIONS = ("allow", "ask", "deny")
DIRECTIVES = ("!include", "!include-dir", "!include-service", "!compat-4.0")


@frozen
class _Parameter:
    """Which rules may carry it. All of today's take yes or no."""

    actions: tuple[str, ...]
    device_only: bool = False


PARAMETERS = {
    "read-only": _Parameter(("allow", "ask"), device_only=True),
    "notify": _Parameter(ACTIONS),
}
PARAMETERS_PENDING = ("target", "user", "autostart", "default_target")
YES_NO = ("yes", "no")

_FIELD = re.compile(r"[^ \t]+")
# What may stand in a line that is not a comment: printable ASCII, blanks and tabs.
_FOREIGN = re.compile(r"[^ -~\t]")
_ARGUMENT = re.compile(r"\+[A-Za-z0-9._+-]*")
_SELECTOR = (
    re.compile(r"[A-Za-z0-9_*-]+"),
    re.compile(r"[A-Za-z0-9._*-]+"),
    re.compile(r"[A-Za-z0-9:._*-]+"),
)
_SELECTOR_SHAPE = "+BACKEND:PORT:IDENTITY"


def parse_bytes(name: str, data: bytes) -> tuple[list[Rule], list[PolicyError]]:
    """Like `parse_file`, from what was read from disk: UTF-8 is checked line by line."""
    if len(data) > FILE_MAX:
        message = f"file of more than {FILE_MAX} bytes; is this a policy?"
        return [], [PolicyError(name, 0, 0, message)]
    return _parse(name, _decode(data))


def parse_file(name: str, text: str) -> tuple[list[Rule], list[PolicyError]]:
    """The rules of one file, and its errors in the order of their places.

    `name` is the file's name as rules and errors show it. With any error the rules are those of
    the good lines only: they are for tools, never for deciding.
    """
    if len(text) > FILE_MAX:
        message = f"file of more than {FILE_MAX} characters; is this a policy?"
        return [], [PolicyError(name, 0, 0, message)]
    return _parse(name, text.split("\n"))


def _parse(
    name: str, lines: Iterable[str | UnicodeDecodeError]
) -> tuple[list[Rule], list[PolicyError]]:
    rules: list[Rule] = []
    errors: list[PolicyError] = []
    for number, line in enumerate(lines, start=1):
        if isinstance(line, UnicodeDecodeError):
            column = len(line.object[: line.start].decode("utf-8")) + 1
            message = f"byte 0x{line.object[line.start]:02x} is not UTF-8"
            errors.append(PolicyError(name, number, column, message))
        else:
            found = _parse_line(name, number, line.removesuffix("\r"))
            if isinstance(found, Rule):
                rules.append(found)
            else:
                errors.extend(PolicyError(name, number, column, why) for column, why in found)
        if len(rules) > RULES_MAX:
            message = f"more than {RULES_MAX} rules in one file"
            return rules[:RULES_MAX], [*errors, PolicyError(name, number, 1, message)]
        if len(errors) >= ERRORS_MAX:
            message = f"{ERRORS_MAX} errors; the rest of the file was not read"
            return rules, [*errors[:ERRORS_MAX], PolicyError(name, number, 1, message)]
    return rules, errors


def _decode(data: bytes) -> Iterator[str | UnicodeDecodeError]:
    for line in data.split(b"\n"):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield error


_Problems = list[tuple[int, str]]  # column from 1, message


def _parse_line(name: str, number: int, line: str) -> Rule | _Problems:
    """A rule, or the problems of this line: none for a comment or a blank line."""
    if (unreadable := _unreadable(line)) is not None:
        return [unreadable]
    if _is_comment(line):
        return []
    fields = [(match.start() + 1, match.group()) for match in _FIELD.finditer(line)]
    if not fields:
        return []
    if fields[0][1].startswith("!"):
        return [(fields[0][0], _directive_problem(fields[0][1]))]
    return _parse_rule(name, number, fields)


def _is_comment(line: str) -> bool:
    return line.lstrip(" \t").startswith("#")


def _unreadable(line: str) -> tuple[int, str] | None:
    """What no line may be or have, and where."""
    nul = line.find("\0")
    if nul >= 0:
        return nul + 1, "a NUL character; this is not a text file"
    if _is_comment(line):
        return None
    if len(line) > LINE_MAX:
        return LINE_MAX + 1, f"line of {len(line)} characters; at most {LINE_MAX} are allowed"
    foreign = _FOREIGN.search(line)
    if foreign is not None:
        code = f"U+{ord(foreign.group()):04X}"
        return foreign.start() + 1, f"character {code}; only a comment may have any but ASCII text"
    return None


def _parse_rule(name: str, number: int, fields: list[tuple[int, str]]) -> Rule | _Problems:
    comment = next((column for column, text in fields if text.startswith("#")), None)
    if comment is not None:
        return [(comment, "a comment cannot follow a rule; put it on a line of its own")]
    if len(fields) < len(COLUMNS):
        column, text = fields[-1]
        missing = ", ".join(COLUMNS[len(fields) :])
        return [(column + len(text), f"{missing} missing; a rule is {' '.join(COLUMNS)}")]

    columns, rest = fields[: len(COLUMNS)], fields[len(COLUMNS) :]
    (service, argument, source, target, action) = (text for _, text in columns)
    checks = (
        service_problem(service),
        _argument_problem(service, argument),
        vm_token_problem(source),
        vm_token_problem(target),
        None if action in ACTIONS else f"no action {shown(action)}; use {', '.join(ACTIONS)}",
    )
    problems = [(at, why) for (at, _), why in zip(columns, checks, strict=True) if why is not None]

    parameters: dict[str, str] = {}
    for column, text in rest:
        key, equals, value = text.partition("=")
        why = _parameter_problem(service, action, key, equals, value, parameters)
        if why is not None:
            problems.append((column, why))
        parameters.setdefault(key, value)
    if problems:
        return problems
    return Rule(
        file=name,
        line=number,
        service=service,
        argument=argument,
        source=source,
        target=target,
        action=action,
        parameters=MappingProxyType(parameters) if parameters else NO_PARAMETERS,
        text=" ".join(text for _, text in fields),
        selector=Selector.of(argument) if _is_device(service) and argument != "*" else None,
    )


def _is_device(service: str) -> bool:
    return service.startswith(DEVICE_SERVICE_PREFIX)


def _directive_problem(word: str) -> str:
    if word in DIRECTIVES:
        return f"{word} is not supported yet"
    return f"no directive {shown(word)}"


def _argument_problem(service: str, argument: str) -> str | None:
    if argument == "*":
        return None
    if not argument.startswith("+"):
        return f"argument {shown(argument)} is neither '*' nor begins with '+'"
    if service == "*":
        return "only the argument '*' goes with the service '*'"
    if _is_device(service):
        return _selector_problem(argument)
    if not _ARGUMENT.fullmatch(argument):
        return f"argument {shown(argument)}: only A-Z a-z 0-9 . _ - + are allowed"
    return None


def _selector_problem(argument: str) -> str | None:
    if argument == "+":
        return "'+' selects no device; write '*' for every device"
    for what, allowed, part in zip(
        _SELECTOR_SHAPE[1:].split(":"), _SELECTOR, argument[1:].split(":", 2), strict=False
    ):
        if not part:
            return f"{what} of {_SELECTOR_SHAPE} is empty; write '*' for any"
        if not allowed.fullmatch(part):
            return f"{what} {shown(part)} has a character that no {what} has ('*' stands for any)"
    return None


def _parameter_problem(
    service: str, action: str, key: str, equals: str, value: str, seen: dict[str, str]
) -> str | None:
    if not equals or not key:
        return f"{shown(key + equals + value)} is not NAME=VALUE"
    parameter = PARAMETERS.get(key)
    if parameter is None:
        return _unknown(key)
    problem = None
    if key in seen:
        problem = f"parameter {key} is given twice"
    elif value not in YES_NO:
        problem = f"{key} is {shown(value)}, but can only be yes or no"
    elif parameter.device_only and not _is_device(service):
        problem = f"{key} is for device rules only"
    elif action in ACTIONS and action not in parameter.actions:
        problem = f"{key} does not go with {action}, only with {' and '.join(parameter.actions)}"
    return problem


def _unknown(key: str) -> str:
    if key in PARAMETERS_PENDING:
        return f"parameter {key} is not supported yet"
    return f"no parameter {shown(key)}; known are {', '.join(PARAMETERS)}"
