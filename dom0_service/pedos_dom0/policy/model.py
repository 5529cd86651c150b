"""Rules, what they decide, and the errors of a policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from attrs import field, frozen

NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


@frozen(order=True)
class PolicyError:
    """One thing that is wrong with a policy.

    `line` and `column` count from 1, the column in characters; both are 0 when the error is about
    the file or folder itself. `file` is a file's name, or a folder's path. `help` says what would
    be right, `text` is the line as it stands in the file; both may be empty.
    """

    file: str
    line: int
    column: int
    message: str
    help: str = ""
    text: str = field(default="", order=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"

    def render(self) -> str:
        """The error for a terminal: where and what, the line with a caret under it, the help."""
        lines = [str(self)]
        if self.text and self.column:
            lines += [f"    {self.text}", f"    {' ' * (self.column - 1)}^"]
        if self.help:
            lines.append(f"    help: {self.help}")
        return "\n".join(lines)


@frozen
class Glob:
    """A text in which each `*` stands for any run of characters, none included.

    Matching is by searching for the pieces from left to right, never by a regular expression: a VM
    chooses the texts, and backtracking over several `*` would let it choose the time too.
    """

    text: str
    _pieces: tuple[str, ...] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_pieces", tuple(self.text.split("*")))

    def matches(self, text: str) -> bool:
        if len(self._pieces) == 1:
            return text == self.text
        first, *middle, last = self._pieces
        if not text.startswith(first):
            return False
        position, end = len(first), len(text) - len(last)
        for piece in middle:
            found = text.find(piece, position, end)
            if found < 0:
                return False
            position = found + len(piece)
        return position <= end and text.endswith(last)


SELECTOR_PARTS = ("BACKEND", "PORT", "IDENTITY")
DeviceParts = tuple[str, str, str]

# Of 10,000 rules few are ever compared with a device: the index finds the others out before. So
# their globs are taken apart when they are needed, and the garbage collector, which holds up the
# event loop, has that many objects less to look at.
SELECTORS_KEPT = 4096


@frozen
class Selector:
    """The argument column of a device rule: up to three globs, a missing one meaning any."""

    # Those that can fail, and the part that each is for: most of a policy's globs are a lone `*`.
    checks: tuple[tuple[int, Glob], ...]

    def matches(self, device: DeviceParts) -> bool:
        for at, glob in self.checks:  # noqa: SIM110 - all() costs a third more, per rule
            if not glob.matches(device[at]):
                return False
        return True

    def why_not(self, device: DeviceParts) -> str:
        """Which part did not match; "" when all did."""
        for at, glob in self.checks:
            if not glob.matches(device[at]):
                return f"{SELECTOR_PARTS[at]} {device[at]!r} does not match {glob.text!r}"
        return ""


@lru_cache(maxsize=SELECTORS_KEPT)
def selector(argument: str) -> Selector:
    """From `+BACKEND:PORT:IDENTITY`. IDENTITY holds colons itself, so two splits at most."""
    globs = (Glob(part) for part in argument[1:].split(":", 2))
    return Selector(tuple((at, glob) for at, glob in enumerate(globs) if glob.text != "*"))


@frozen
class Outcome:
    """What a rule decides: its action and parameters, with what is meant where one is left out.

    `target` is where a call is sent instead of to what it named. Rules of one file that decide the
    same share one Outcome.
    """

    action: str  # allow, ask or deny
    parameters: Mapping[str, str] = NO_PARAMETERS  # as they were written
    target: str | None = None
    user: str | None = None
    autostart: bool = True
    notify: bool = False
    default_target: str | None = None
    read_only: bool = False


@frozen
class Rule:
    """One line of a policy. `text` is that line with single spaces between its columns.

    `file` is the name of the file that it stands in, which may be one that another includes.
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
        """Does the argument column match? `device` is the argument's parts, for a device."""
        if self.argument == "*":
            return True
        if self.selects:
            return device is not None and selector(self.argument).matches(device)
        return self.argument == argument
