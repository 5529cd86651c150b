"""Reads the files and folders of a policy: bounded, without waiting, and noting what was seen.

No function here raises for what is on disk: it returns errors as sentences.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pedos_protocol.frozen import frozen
from pedos_protocol.names import printable_text, shown

from .model import PolicyError
from .parser import FILE_MAX
from .whole_file import is_there, read_whole, real_path, why

SUFFIX = ".policy"
_FILE_NAME = re.compile(r"[0-9a-z_.-]+\.policy")

# Policies have a handful of files; the bounds keep a folder that was filled by mistake, or files
# that include each other over and over, from being read for minutes, while the old policy is in
# force without a word.
FILES_MAX = 1000
BYTES_MAX = 4 * FILE_MAX
# Characters of a folder's path in an error.
PATH_SHOWN = 256

_Look = Callable[[], object]


class Files:
    """The policy folders, in order of precedence, as one pass sees them.

    `replaced` puts content in place of files of the last folder, by their path in it; None removes
    one.
    """

    def __init__(
        self, directories: Sequence[Path], replaced: Mapping[str, bytes | None] | None = None
    ) -> None:
        self.directories = list(directories)
        self._replaced = dict(replaced or {})
        self._seen: list[tuple[_Look, object]] = []
        self._real: dict[Path, Path] = {}
        self._unsure: dict[Path, str] = {}  # whose target could not be determined, and why
        #: The folders in which a change may change the policy.
        self.watched: dict[Path, None] = dict.fromkeys(self.directories)

    def unchanged(self) -> bool:
        """Is everything as it was when this pass looked at it?"""
        return all(look() == found for look, found in self._seen)

    def policies_in(self, relative: str) -> tuple[dict[str, str], list[PolicyError], bool]:
        """The `*.policy` of a folder in all policy folders: their names, and their paths in those.

        "" is the policy folders themselves. Also returns their errors, and whether such a folder
        exists at all.
        """
        paths: dict[str, str] = {}
        errors: list[PolicyError] = []
        there = False
        for folder in self.directories:
            directory = folder / relative
            self.watched[directory] = None
            last = folder == self.directories[-1]
            names, wrong, exists = self._names(directory, needed=last and not relative)
            errors += wrong
            there = there or exists
            if last:
                names = self._with_replaced(names, relative)
                errors += [_bad_name(name) for name in names if not _FILE_NAME.fullmatch(name)]
            for name in filter(_FILE_NAME.fullmatch, names):
                paths.setdefault(name, os.path.join(relative, name))
        return {name: paths[name] for name in sorted(paths, key=os.fsencode)}, errors, there

    def _with_replaced(self, names: list[str], relative: str) -> list[str]:
        kept = set(names)
        for path, data in self._replaced.items():
            if os.path.dirname(path) != relative.rstrip("/"):
                continue
            if data is None:
                kept.discard(os.path.basename(path))
            elif path.endswith(SUFFIX):
                kept.add(os.path.basename(path))
        return sorted(kept)

    def _names(self, directory: Path, needed: bool) -> tuple[list[str], list[PolicyError], bool]:
        """Editors and packaging leave hidden files and files with other suffixes: these are
        ignored. A `.policy` file whose name would not be read is an error, so that no rule is
        missed silently."""
        names: list[str] = []
        errors: list[PolicyError] = []
        listed = _listing(directory)
        self._seen.append((lambda: _listing(directory), listed))
        where = shown_path(directory)
        if isinstance(listed, _Unlisted):
            if needed or listed.number != errno.ENOENT:
                message = f"the folder cannot be read: {listed.reason}"
                errors.append(PolicyError(where, 0, 0, message))
            return names, errors, False
        for name in listed:
            if len(names) + len(errors) >= FILES_MAX:
                many = f"more than {FILES_MAX} policy files in one folder"
                errors.append(PolicyError(where, 0, 0, many))
                break
            if _FILE_NAME.fullmatch(name):
                names.append(name)
            else:
                errors.append(_bad_name(name))
        return names, errors, True

    def every_name(self, directory: Path) -> tuple[list[str], str]:
        """The names in a folder outside the policy folders that are not hidden, and why it cannot
        be read; a missing folder has no names."""
        self.watched[directory] = None
        listed = _listing(directory, "")
        self._seen.append((lambda: _listing(directory, ""), listed))
        if isinstance(listed, _Unlisted):
            return [], "" if listed.number == errno.ENOENT else listed.reason
        return listed, ""

    def find(self, relative: str) -> Path | None:
        """The place of the file with that path: the first of the policy folders that has it."""
        for folder in self.directories:
            path = folder / relative
            self._watch(path)
            if folder == self.directories[-1] and relative in self._replaced:
                return path if self._replaced[relative] is not None else None
            there = is_there(path)
            self._seen.append((lambda path=path: is_there(path), there))  # type: ignore[misc]
            if there:
                return path
        return None

    def _watch(self, path: Path) -> None:
        self.watched[path.parent] = None
        try:
            real = self._real[path] = real_path(path)
        except OSError as error:
            self._unsure[path] = why(error)
        else:
            self.watched[real.parent] = None

    def real(self, path: Path) -> str:
        """The path, which `find` gave, without symbolic links."""
        return str(self._real.get(path, path))

    def read(self, path: Path, relative: str) -> bytes | str:
        """The content, or the reason for having none."""
        if path in self._unsure:
            # The link's target is not watched, so its present content must not be in force for
            # good.
            return f"cannot be looked at: {self._unsure[path]}"
        if path == self.directories[-1] / relative:
            data = self._replaced.get(relative)
            if data is not None:
                return data
        self._seen.append((lambda: _signature(path), _signature(path)))
        return read_whole(path, FILE_MAX)


def _bad_name(name: str) -> PolicyError:
    message = "a policy file's name has only 0-9 a-z _ . -"
    return PolicyError(shown(name), 0, 0, message, "rename it")


@frozen
class _Unlisted:
    """Why a folder could not be listed; unlike an OSError, it equals another of its kind."""

    number: int | None
    reason: str


def _listing(directory: Path, suffix: str = SUFFIX) -> list[str] | _Unlisted:
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.endswith(suffix) and not entry.name.startswith(".")
            )
    except OSError as error:
        return _Unlisted(error.errno, why(error))


def _signature(path: Path) -> tuple[int, ...] | int | None:
    """A digest that changes with every change of a file's content, and of a link's target."""
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_dev, found.st_ino, found.st_size, *times)


def shown_path(directory: Path) -> str:
    """A folder's name may contain any bytes; what is sent and logged is text of one line."""
    return printable_text(str(directory), PATH_SHOWN)
