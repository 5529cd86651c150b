"""From the fields of one line to a rule, or to all its errors."""

from __future__ import annotations

import difflib
import re
from types import MappingProxyType

from attrs import field, frozen
from pedos_protocol.names import shown

from .lines import Fields, Problem
from .model import NO_PARAMETERS, Outcome, Rule
from .selectors import selector_problem
from .tokens import (
    DEFAULT,
    DEVICE_SERVICE_PREFIX,
    REDIRECT,
    SOURCE,
    TARGET,
    service_problem,
    vm_word_problem,
)

COLUMNS = ("SERVICE", "ARGUMENT", "SOURCE", "TARGET", "ACTION")
ACTIONS = ("allow", "ask", "deny")
YES_NO = ("yes", "no")

_Why = tuple[str, str]  # message, help


@frozen
class _Parameter:
    """Which rules may carry a parameter, and the kind of its value: yes or no, a VM, or a user's
    name."""

    kind: str
    actions: tuple[str, ...]
    device_only: bool = False


PARAMETERS = {
    "target": _Parameter(REDIRECT, ("allow", "ask")),
    "default_target": _Parameter(REDIRECT, ("ask",)),
    "user": _Parameter("user", ("allow", "ask")),
    "autostart": _Parameter("yes or no", ("allow", "ask")),
    "notify": _Parameter("yes or no", ACTIONS),
    "read-only": _Parameter("yes or no", ("allow", "ask"), device_only=True),
}

_ARGUMENT = re.compile(r"\+[A-Za-z0-9._+-]*")


@frozen
class Reader:
    """Makes the rules of one file. Equal outcomes are made once."""

    file: str
    _outcomes: dict[tuple[str, ...], Outcome] = field(factory=dict, repr=False)

    def rule(self, number: int, fields: Fields) -> Rule | list[Problem]:
        """`fields` are those of line `number`: five columns, and parameters."""
        comment = next((column for column, text in fields if text.startswith("#")), None)
        if comment is not None:
            message = "a comment cannot follow a rule"
            return [Problem(comment, message, "put it on a line of its own")]
        if len(fields) < len(COLUMNS):
            column, text = fields[-1]
            missing = ", ".join(COLUMNS[len(fields) :])
            shape = f"a rule is {' '.join(COLUMNS)}"
            return [Problem(column + len(text), f"{missing} missing", shape)]
        (service, argument, source, target, action) = (text for _, text in fields[:5])
        key = (service[: len(DEVICE_SERVICE_PREFIX)], *(text for _, text in fields[4:]))
        problems = [
            Problem(fields[at][0], *why)
            for at, why in enumerate(
                (
                    service_problem(service),
                    argument_problem(service, argument),
                    vm_word_problem(source, SOURCE),
                    vm_word_problem(target, TARGET),
                    _action_problem(action),
                )
            )
            if why is not None
        ]
        outcome = self._outcomes.get(key)
        if outcome is None:
            found = _outcome(service, fields[4:])
            if isinstance(found, Outcome):
                outcome = self._outcomes[key] = found
            else:
                problems += found
        if action == "allow" and target == DEFAULT and outcome and outcome.target is None:
            message = "allow for @default needs target="
            problems.append(Problem(fields[4][0], message, "write allow target=VM"))
        if problems or outcome is None:
            return sorted(problems, key=_by_column)
        return Rule(
            self.file,
            number,
            service,
            argument,
            source,
            target,
            outcome,
            " ".join([text for _, text in fields]),
            _is_device(service) and argument != "*",
        )


def _by_column(problem: Problem) -> int:
    return problem.column


def _is_device(service: str) -> bool:
    return service.startswith(DEVICE_SERVICE_PREFIX)


def _action_problem(action: str) -> _Why | None:
    if action in ACTIONS:
        return None
    if action.partition(",")[0] in ACTIONS:
        return f"no action {shown(action)}", "parameters are parted by blanks, not by commas"
    return f"no action {shown(action)}", f"use {', '.join(ACTIONS)}"


def argument_problem(service: str, argument: str) -> _Why | None:
    if argument == "*":
        return None
    if not argument.startswith("+"):
        return f"argument {shown(argument)} is neither '*' nor begins with '+'", "write '*' for any"
    if service == "*":
        return "only the argument '*' goes with the service '*'", ""
    if _is_device(service):
        return selector_problem(service.rpartition(".")[2], argument)
    if not _ARGUMENT.fullmatch(argument):
        message = f"argument {shown(argument)} has a character that no argument has"
        return message, "only A-Z a-z 0-9 . _ - + are allowed"
    return None


def _outcome(service: str, fields: Fields) -> Outcome | list[Problem]:
    """From the action and its parameters."""
    action = fields[0][1]
    problems: list[Problem] = []
    written: dict[str, str] = {}
    for column, text in fields[1:]:
        name, equals, value = text.partition("=")
        why = _parameter_problem(service, action, name, equals, value, written)
        if why is not None:
            problems.append(Problem(column, *why))
        written.setdefault(name, value)
    if problems:
        return problems
    return Outcome(
        action,
        MappingProxyType(written) if written else NO_PARAMETERS,
        target=written.get("target"),
        user=written.get("user"),
        autostart=written.get("autostart") != "no",
        notify=written.get("notify", "yes" if action == "deny" else "no") == "yes",
        default_target=written.get("default_target"),
        read_only=written.get("read-only") == "yes",
    )


def _parameter_problem(
    service: str, action: str, name: str, equals: str, value: str, seen: dict[str, str]
) -> _Why | None:
    if not equals or not name:
        return (
            f"{shown(name + equals + value)} is not NAME=VALUE",
            "without blanks, as in notify=no",
        )
    parameter = PARAMETERS.get(name)
    if parameter is None:
        return f"no parameter {shown(name)}", _nearest(name)
    if name in seen:
        return f"parameter {name} is given twice", "leave one of them out"
    if parameter.device_only and not _is_device(service):
        return f"{name} is for device rules only", ""
    if action in ACTIONS and action not in parameter.actions:
        return f"{name} does not go with {action}", f"only with {' and '.join(parameter.actions)}"
    return _value_problem(name, parameter.kind, value)


def _value_problem(name: str, kind: str, value: str) -> _Why | None:
    if kind == REDIRECT:
        if not value:
            return f"{name} is empty", "name a VM"
        return vm_word_problem(value, REDIRECT)
    if kind == "user":
        return None if value else (f"{name} is empty", "name a user of the target")
    if value not in YES_NO:
        return f"{name} is {shown(value)}", "it can only be yes or no"
    return None


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, PARAMETERS, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(PARAMETERS)}"
