"""From the content of a policy file to its rules and directives, or to all its errors.

Parsing continues after an error, so that an administrator sees all of them at once.
"""

from __future__ import annotations

from attrs import field
from pedos_protocol.frozen import frozen
from pedos_protocol.names import shown

from .lines import Fields, Problem, fields_of, lines_of, shown_line
from .model import PolicyError, Rule
from .rules import COLUMNS, Reader, argument_problem
from .tokens import service_problem
from .yielding import YieldNow, never, yielding

__all__ = ["Directive", "Parsed", "PolicyError", "parse", "parse_file"]

# Several times the largest known policy; keeps a wrong file (a disk image named 50-x.policy) from
# being read and parsed for minutes.
FILE_MAX = 4 * 1024 * 1024
# Per file. Five times the 10,000 that the performance gates require.
RULES_MAX = 50_000
# Per file: all errors of a file that people write, but not one for each line of a binary file.
ERRORS_MAX = 500

#: Each directive and its arguments.
DIRECTIVES = {
    "!include": ("FILE",),
    "!include-dir": ("DIR",),
    "!include-service": ("SERVICE", "ARGUMENT", "FILE"),
    "!compat-4.0": (),
}


@frozen
class Directive:
    """A line that includes other files: its place, and its text."""

    name: str
    words: tuple[str, ...]
    line: int
    column: int
    text: str

    @property
    def path(self) -> str:
        """The file or folder, as the line has it; "" for `!compat-4.0`."""
        return self.words[-1] if self.words else ""


@frozen
class Parsed:
    """The content of one file, in its order. With any error the rules are for tools only."""

    items: list[Rule | Directive] = field(factory=list)
    errors: list[PolicyError] = field(factory=list)


def parse_file(name: str, content: str | bytes) -> tuple[list[Rule], list[PolicyError]]:
    """The rules of one file, and its errors in the order of their places.

    For a policy that consists of this file alone: a directive is an error, as there is no folder to
    look in. `name` is the file's name in rules and errors. With any error the rules are those of
    the good lines only: they are for tools, never for deciding.
    """
    parsed = parse(name, content)
    errors = list(parsed.errors)
    rules: list[Rule] = []
    for item in parsed.items:
        if isinstance(item, Rule):
            rules.append(item)
        else:
            message = f"{item.name} has no folder to look in"
            errors.append(PolicyError(name, item.line, item.column, message, "", item.text))
    return rules, sorted(errors, key=_line)


def _line(error: PolicyError) -> int:
    return error.line


def parse(
    name: str,
    content: str | bytes,
    *,
    service: tuple[str, str] | None = None,
    yield_now: YieldNow = never,
) -> Parsed:
    """Everything in a file. With `service`, its lines are SOURCE TARGET ACTION [NAME=VALUE ...] of
    that service and argument. `yield_now` is called at intervals, as for Snapshot."""
    parsed = Parsed()
    if len(content) > FILE_MAX:
        unit = "characters" if isinstance(content, str) else "bytes"
        message = f"file of more than {FILE_MAX} {unit}; is this a policy?"
        parsed.errors.append(PolicyError(name, 0, 0, message))
        return parsed
    reader = Reader(name)
    rules = 0
    for number, line in enumerate(yielding(lines_of(content), yield_now), start=1):
        fields = fields_of(line)
        if not fields:
            continue
        found: Rule | Directive | list[Problem]
        if isinstance(fields, Problem):
            found = [fields]
        elif fields[0][1].startswith("!"):
            found = _directive(number, fields, shown_line(line), service is not None)
        else:
            found = _rule(reader, number, fields, service)
        if isinstance(found, list):
            text = shown_line(line)
            parsed.errors.extend(
                PolicyError(name, number, p.column, p.message, p.help, text) for p in found
            )
        else:
            rules += isinstance(found, Rule)
            parsed.items.append(found)
        if rules > RULES_MAX:
            parsed.items.pop()
            message = f"more than {RULES_MAX} rules in one file"
            parsed.errors.append(PolicyError(name, number, 1, message))
            return parsed
        if len(parsed.errors) >= ERRORS_MAX:
            del parsed.errors[ERRORS_MAX:]
            message = f"{ERRORS_MAX} errors; the rest of the file was not read"
            parsed.errors.append(PolicyError(name, number, 1, message))
            return parsed
    return parsed


def _rule(
    reader: Reader, number: int, fields: Fields, service: tuple[str, str] | None
) -> Rule | list[Problem]:
    if service is None:
        return reader.rule(number, fields)
    if len(fields) < 3 and not any(text.startswith("#") for _, text in fields):
        column, text = fields[-1]
        missing = ", ".join(COLUMNS[2 + len(fields) :])
        shape = f"a rule in a file of !include-service is {' '.join(COLUMNS[2:])}"
        return [Problem(column + len(text), f"{missing} missing", shape)]
    return reader.rule(number, [(1, word) for word in service] + fields)


def _directive(
    number: int, fields: Fields, text: str, within_service: bool
) -> Directive | list[Problem]:
    column, name = fields[0]
    shape = DIRECTIVES.get(name)
    if shape is None:
        return [
            Problem(column, f"no directive {shown(name)}", f"known are {', '.join(DIRECTIVES)}")
        ]
    if within_service and name != "!include":
        message = f"{name} cannot stand in a file of !include-service"
        return [Problem(column, message, "only rules and !include can")]
    words = tuple(word for _, word in fields[1:])
    if len(words) > len(shape):
        return [Problem(fields[len(shape) + 1][0], f"too much for {name}", _shape_of(name))]
    if len(words) < len(shape):
        end = fields[-1][0] + len(fields[-1][1])
        return [Problem(end, f"{', '.join(shape[len(words) :])} missing", _shape_of(name))]
    problem = _service_words_problem(fields) if name == "!include-service" else None
    return [problem] if problem else Directive(name, words, number, column, text)


def _service_words_problem(fields: Fields) -> Problem | None:
    """The errors of SERVICE and ARGUMENT of an !include-service."""
    (at, service), (argument_at, argument) = fields[1:3]
    why = service_problem(service)
    if why is None:
        at, why = argument_at, argument_problem(service, argument)
    return None if why is None else Problem(at, *why)


def _shape_of(name: str) -> str:
    return f"write {' '.join((name, *DIRECTIVES[name]))}"
