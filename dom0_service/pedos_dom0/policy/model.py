"""Rules, the errors of a policy, and the immutable snapshot that requests are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

from attrs import field, frozen

from .tokens import service_tokens

NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})


@frozen(order=True)
class PolicyError:
    """One thing that is wrong with a policy.

    `line` and `column` count from 1, the column in characters; both are 0 when the error is about
    the file or folder itself. `file` is a file's name, or a folder's path.
    """

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


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


@frozen
class Selector:
    """The argument column of a device rule: up to three globs, a missing one meaning any."""

    globs: tuple[Glob, ...]
    # Those that can fail, and the part that each is for: most of a policy's globs are a lone `*`.
    _checks: tuple[tuple[int, Glob], ...] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        checks = tuple((at, glob) for at, glob in enumerate(self.globs) if glob.text != "*")
        object.__setattr__(self, "_checks", checks)

    @classmethod
    def of(cls, argument: str) -> Selector:
        """From `+BACKEND:PORT:IDENTITY`. IDENTITY holds colons itself, so two splits at most."""
        return cls(tuple(Glob(part) for part in argument[1:].split(":", 2)))

    def matches(self, device: DeviceParts) -> bool:
        for at, glob in self._checks:  # noqa: SIM110 - all() costs a third more, per rule
            if not glob.matches(device[at]):
                return False
        return True

    def why_not(self, device: DeviceParts) -> str:
        """Which part did not match; "" when all did."""
        for at, glob in self._checks:
            if not glob.matches(device[at]):
                return f"{SELECTOR_PARTS[at]} {device[at]!r} does not match {glob.text!r}"
        return ""


@frozen
class Rule:
    """One line of a policy. `text` is that line with single spaces between its columns."""

    file: str
    line: int
    service: str
    argument: str
    source: str
    target: str
    action: str
    parameters: Mapping[str, str]
    text: str
    selector: Selector | None = None  # None: the argument is `*`, or the service not a device one

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


_Bucket = list[tuple[int, Rule]]
_Index = dict[str, dict[str, dict[str, _Bucket]]]


def _tuple(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


@frozen
class Snapshot:
    """All rules of a policy in their order, indexed by service, then source, then target word.

    Never changed after it is made; a new policy is a new snapshot, swapped in as a whole.
    """

    DENY_ALL: ClassVar[Snapshot]

    rules: tuple[Rule, ...] = field(converter=_tuple)
    _index: _Index = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        index: _Index = {}
        for position, rule in enumerate(self.rules):
            by_source = index.setdefault(rule.service, {})
            by_target = by_source.setdefault(rule.source, {})
            by_target.setdefault(rule.target, []).append((position, rule))
        object.__setattr__(self, "_index", index)

    def __len__(self) -> int:
        return len(self.rules)

    def buckets(
        self, service: str, sources: frozenset[str], targets: frozenset[str]
    ) -> Iterator[_Bucket]:
        """The lists of (position, rule) whose three words all stand for what is asked.

        Each list is in file order; the lists among each other are not.
        """
        for service_word in service_tokens(service):
            by_source = self._index.get(service_word)
            if by_source is None:
                continue
            for source in sources:
                by_target = by_source.get(source)
                if by_target is None:
                    continue
                for target in targets:
                    bucket = by_target.get(target)
                    if bucket is not None:
                        yield bucket


Snapshot.DENY_ALL = Snapshot(())
