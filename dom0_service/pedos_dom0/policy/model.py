"""Rules, what they decide, and the errors of a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from attrs import field, frozen

from .selectors import NO, SURE, DeviceParts, match_open, selector

NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


def _characters_before(_text: str, column: int) -> int:
    return column - 1


@frozen(order=True)
class PolicyError:
    """One error of a policy.

    `line` and `column` count from 1, the column in characters; both are 0 when the error concerns
    the file or folder itself. `file` is a file's name, or a folder's path. `help` is the
    correction, `text` the line as the file has it; both may be empty.
    """

    file: str
    line: int
    column: int
    message: str
    help: str = ""
    text: str = field(default="", order=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"

    def render(self, columns_before: Callable[[str, int], int] = _characters_before) -> str:
        """The error for a terminal: place and message, the line with a caret under it, the help.

        `columns_before` tells how far to the right the character at a column of a text is
        displayed.
        """
        lines = [str(self)]
        if self.text and self.column:
            before = columns_before(self.text, self.column)
            lines += [f"    {self.text}", f"    {' ' * before}^"]
        if self.help:
            lines.append(f"    help: {self.help}")
        return "\n".join(lines)


@frozen
class Outcome:
    """What a rule decides: its action and parameters, with defaults for the missing ones.

    `target` is the VM that a call is redirected to. Rules of one file that decide the same share
    one Outcome.
    """

    action: str  # allow, ask or deny
    parameters: Mapping[str, str] = NO_PARAMETERS  # as the file has them
    target: str | None = None
    user: str | None = None
    autostart: bool = True
    notify: bool = False
    default_target: str | None = None
    read_only: bool = False

    @property
    def gives(self) -> tuple[str | None, str | None, bool]:
        """What two rules must have in common for one of them to be the stricter: the call's target
        and user, and whether that VM is started for it."""
        return self.target, self.user, self.autostart

    @property
    def text(self) -> str:
        """The same value for outcomes that decide the same."""
        return " ".join(
            map(str, (self.action, *self.gives, self.notify, self.default_target, self.read_only))
        )


@frozen
class Rule:
    """One line of a policy. `text` is that line with single spaces between its columns.

    `file` is the name of the file that contains it, which may be an included one.
    """

    file: str
    line: int
    service: str
    argument: str
    source: str
    target: str
    outcome: Outcome
    text: str
    selects: bool = False  # is the argument a device's selector?

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def action(self) -> str:
        return self.outcome.action

    @property
    def parameters(self) -> Mapping[str, str]:
        return self.outcome.parameters

    def takes(self, argument: str, device: DeviceParts | None) -> bool:
        """Does the argument column match? `device` is the argument's parts, for a device that is
        fully known."""
        if self.argument == "*":
            return True
        if self.selects:
            return device is not None and selector(self.argument).matches(device)
        return self.argument == argument

    def takes_open(self, device: DeviceParts) -> int:
        """NO, POSSIBLE or SURE: the same for a device that is not fully known."""
        if self.argument == "*":
            return SURE
        return match_open(self.argument, device) if self.selects else NO
