"""From the policy folders to a snapshot: overlay, includes, and every error of every file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import field
from pedos_protocol.frozen import frozen

from . import compat
from .files import BYTES_MAX, FILES_MAX, Files, shown_path
from .model import PolicyError, Rule
from .parser import RULES_MAX, Directive, parse
from .snapshot import Snapshot
from .yielding import YieldNow, never

# The reference's bound, and more than a reader can follow.
DEPTH_MAX = 16
# How often a pass is repeated that finds at its end that the files have changed: files that change
# more often cause a wake-up afterwards anyhow.
PASSES_MAX = 3


@frozen
class Loaded:
    """The content of the folders. With any error, `rules` are not for use, and `snapshot` denies
    all.

    `files` are the names of the files that were read, each once, in reading order; `watched` the
    folders in which a change may change the policy; `digest` is the same for the same content.
    `services` are those of the files whose lines have no columns for service and argument, because
    an `!include-service` names them.
    """

    rules: tuple[Rule, ...]
    errors: tuple[PolicyError, ...]
    files: tuple[str, ...]
    snapshot: Snapshot
    watched: tuple[Path, ...] = ()
    digest: bytes = b""
    services: Mapping[str, tuple[str, str]] = field(factory=dict)


def read_policy(
    directories: Sequence[Path],
    *,
    replaced: Mapping[str, bytes | None] | None = None,
    legacy: Path = compat.DIRECTORY,
    yield_now: YieldNow = never,
) -> Loaded:
    """All rules of all files, in one pass during which nothing changed.

    Files are read in C-locale order of their names, whichever folder they are in; of two with the
    same name, the one in the earlier folder counts. `replaced` puts content in place of files of
    the last folder (None: removes one), to see the result before it is written. `yield_now` is
    called at intervals. Raises nothing: it returns errors.
    """
    directories = [Path(directory) for directory in directories]
    for _ in range(PASSES_MAX):
        a_pass = _Pass(Files(directories, replaced), legacy, yield_now)
        a_pass.read_all()
        if a_pass.files.unchanged():
            return a_pass.loaded()
    where = shown_path(directories[0]) if directories else ""
    a_pass.errors.append(PolicyError(where, 0, 0, "the files kept changing while they were read"))
    return a_pass.loaded()


class _EnoughError(Exception):
    """A bound was exceeded; the error that says so has been noted."""


@frozen
class _Place:
    """A file that is being read: how it was reached, and the service of its rules."""

    name: str  # its name in errors and rules
    real: str  # without symbolic links: two names of one file are one file
    line: int = 0  # of the directive that is being followed
    service: tuple[str, str] | None = None
    via: _Place | None = None

    def chain(self) -> list[_Place]:
        """The chain from the file that was read first to this one."""
        places, place = [self], self.via
        while place is not None:
            places.append(place)
            place = place.via
        return places[::-1]


class _Pass:
    """One reading of everything."""

    def __init__(self, files: Files, legacy: Path, yield_now: YieldNow) -> None:
        self.files = files
        self._legacy = legacy
        self._yield_now = yield_now
        self.errors: list[PolicyError] = []
        self._rules: list[Rule] = []
        self._names: dict[str, None] = {}
        self._services: dict[str, tuple[str, str]] = {}
        self._reads = 0
        self._size = 0
        self._hash = hashlib.sha256()

    def loaded(self) -> Loaded:
        # The same file may be included twice.
        errors = tuple(dict.fromkeys(self.errors))
        rules = tuple(self._rules)
        snapshot = Snapshot.DENY_ALL if errors else Snapshot(rules, self._yield_now)
        watched = tuple(self.files.watched)
        names, digest = tuple(self._names), self._hash.digest()
        return Loaded(rules, errors, names, snapshot, watched, digest, self._services)

    def read_all(self) -> None:
        if not self.files.directories:
            self.errors.append(PolicyError("", 0, 0, "no policy folder was given"))
            return
        paths, errors, _ = self.files.policies_in("")
        self.errors += sorted(errors)
        try:
            for name, relative in paths.items():
                path = self.files.find(relative)
                if path is None:
                    continue  # removed since it was listed: the pass is repeated
                content = self.files.read(path, relative)
                if isinstance(content, str):
                    self._names[name] = None
                    self.errors.append(PolicyError(name, 0, 0, content))
                else:
                    self._take(_Place(name, self.files.real(path)), content)
        except _EnoughError:
            pass

    def _take(self, place: _Place, content: bytes) -> None:
        """The rules of a file, with those of included files in their places."""
        self._names[place.name] = None
        if place.service is not None:
            self._services[place.name] = place.service
        self._reads += 1
        self._size += len(content)
        self._hash.update(f"{place.name}\0{place.service}\0{len(content)}\0".encode())
        self._hash.update(content)
        if self._reads > FILES_MAX:
            self._enough(place, f"more than {FILES_MAX} files are read, counting each inclusion")
        if self._size > BYTES_MAX:
            self._enough(place, f"more than {BYTES_MAX} bytes of policy")
        parsed = parse(place.name, content, service=place.service, yield_now=self._yield_now)
        own = parsed.errors
        told = 0
        for item in parsed.items:
            # Errors come in the order of lines, those of an included file at the place of its
            # inclusion.
            while told < len(own) and own[told].line <= item.line:
                self.errors.append(own[told])
                told += 1
            if isinstance(item, Rule):
                self._rules.append(item)
            else:
                self._follow(place, item)
            if len(self._rules) > RULES_MAX:
                self._enough(place, f"more than {RULES_MAX} rules in all files")
        self.errors += own[told:]

    def _enough(self, place: _Place, message: str) -> None:
        self.errors.append(PolicyError(place.name, 0, 0, message))
        raise _EnoughError

    def _follow(self, place: _Place, directive: Directive) -> None:
        if directive.name == "!compat-4.0":
            self._compat(place, directive)
        elif directive.name == "!include-dir":
            self._include_dir(place, directive)
        else:
            service = place.service
            if directive.name == "!include-service":
                service = (directive.words[0], directive.words[1])
            self._include(place, directive, directive.path, service)

    def _include_dir(self, place: _Place, directive: Directive) -> None:
        paths, errors, there = self.files.policies_in(directive.path)
        for error in sorted(errors):
            self._wrong(place, directive, f"{error.file}: {error.message}", error.help)
        if not there and not errors:
            self._wrong(place, directive, f"there is no folder {directive.path}", _LOOKED)
        for relative in paths.values():
            self._include(place, directive, relative, place.service)

    def _include(
        self, place: _Place, directive: Directive, relative: str, service: tuple[str, str] | None
    ) -> None:
        path = self.files.find(relative)
        if path is None:
            self._wrong(place, directive, f"there is no file {relative}", _LOOKED)
            return
        here = _Place(place.name, place.real, directive.line, place.service, place.via)
        inner = _Place(relative, self.files.real(path), 0, service, here)
        chain = " -> ".join(
            f"{step.name}:{step.line}" if step.line else step.name for step in inner.chain()
        )
        if any(step.real == inner.real for step in here.chain()):
            message = f"{relative} includes itself: {chain}"
            self._wrong(place, directive, message, "take one of these lines out")
        elif len(inner.chain()) > DEPTH_MAX + 1:
            message = f"more than {DEPTH_MAX} files deep: {chain}"
            self._wrong(place, directive, message, "include it from a file further out")
        else:
            content = self.files.read(path, relative)
            if isinstance(content, str):
                self._wrong(place, directive, f"{relative} {content}")
            else:
                self._take(inner, content)

    def _compat(self, place: _Place, directive: Directive) -> None:
        found, errors = compat.read(self._legacy, self.files)
        self.errors += errors
        for service, argument, name, content in found:
            if content is None:
                self._wrong(place, directive, f"{name} cannot be read")
                continue
            here = _Place(place.name, place.real, directive.line, place.service, place.via)
            self._take(_Place(name, name, 0, (service, argument), here), content)

    def _wrong(self, place: _Place, directive: Directive, message: str, help_: str = "") -> None:
        at = (place.name, directive.line, directive.column)
        self.errors.append(PolicyError(*at, message, help_, directive.text))


_LOOKED = "paths are looked up in each of the policy folders"
