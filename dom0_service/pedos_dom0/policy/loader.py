"""The policy folders on disk, and the snapshot of them that is in force.

A policy is taken as a whole or not at all: one error in one file, and the snapshot before it stays
in force. Before the first good one that is Snapshot.DENY_ALL.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import stat
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import trio
from attrs import frozen
from pedos_protocol import messages
from pedos_protocol.fields import ERRORS_MAX
from pedos_protocol.names import printable_text, shown
from pedos_vchan.folder_watch import FolderWatch

from .model import PolicyError, Rule, Snapshot
from .parser import FILE_MAX, RULES_MAX, parse_bytes

log = logging.getLogger(__name__)

SUFFIX = ".policy"
_FILE_NAME = re.compile(r"[0-9a-z_.-]+\.policy")

# Policies have a handful of files; the bounds keep a folder that was filled by mistake from being
# read for minutes, with the old policy in force and nobody the wiser.
FILES_MAX = 1000
BYTES_MAX = 4 * FILE_MAX
# A pass over the files that finds them changed at its end is made again, this often: whoever
# changes them so often causes a wake-up afterwards anyhow.
PASSES_MAX = 3
# Seconds from a change to reading: an editor's write and rename, or a package's many files, come
# as one burst, and there is no use in complaining of the half of it.
SETTLE = 0.05
# Seconds after which a policy with errors is looked at again without a wake-up: what is wrong may
# be mended where nothing is watched (behind a symbolic link, above a missing folder).
AGAIN = 10.0
# Characters of a folder's path in an error.
PATH_SHOWN = 256


@frozen
class Loaded:
    """What one pass over the folders gave. With any error, `rules` are not for use."""

    rules: tuple[Rule, ...]
    errors: tuple[PolicyError, ...]
    files: int


def read_policy(directories: Sequence[Path]) -> Loaded:
    """All rules of all files, in one pass during which nothing changed.

    Files are read in C-locale order of their names, whichever folder they are in; of two with the
    same name, the one in the earlier folder counts. Raises nothing: what goes wrong is an error.
    """
    for _ in range(PASSES_MAX):
        before = _fingerprint(directories)
        loaded = _read_pass(directories)
        if _fingerprint(directories) == before:
            return loaded
    where = _shown_path(directories[0]) if directories else ""
    changing = PolicyError(where, 0, 0, "the files kept changing while they were read")
    return Loaded((), (*loaded.errors, changing), loaded.files)


def _fingerprint(directories: Sequence[Path]) -> list[object]:
    """Changes with every change of a name, of a file's content and of what a link points to."""
    seen: list[object] = []
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))
        except OSError as error:
            seen.append((str(directory), error.errno))
            continue
        for name in names[: FILES_MAX + 1]:
            try:
                found = (directory / name).stat()
            except OSError as error:
                seen.append((str(directory), name, error.errno))
            else:
                times = (found.st_mtime_ns, found.st_ctime_ns)
                seen.append((str(directory), name, found.st_ino, found.st_size, times))
    return seen


def _read_pass(directories: Sequence[Path]) -> Loaded:
    errors: list[PolicyError] = []
    if not directories:
        errors.append(PolicyError("", 0, 0, "no policy folder was given"))
    paths: dict[str, Path] = {}
    for directory in directories:
        names, found = _names(directory)
        errors += found
        for name in names:
            paths.setdefault(name, directory / name)

    rules: list[Rule] = []
    size = 0
    for name in sorted(paths, key=os.fsencode):
        data = _read_file(paths[name])
        if isinstance(data, str):
            errors.append(PolicyError(name, 0, 0, data))
            continue
        size += len(data)
        if size > BYTES_MAX:
            errors.append(PolicyError(name, 0, 0, f"more than {BYTES_MAX} bytes of policy"))
            break
        some, wrong = parse_bytes(name, data)
        rules += some
        errors += wrong
        if len(rules) > RULES_MAX:
            errors.append(PolicyError(name, 0, 0, f"more than {RULES_MAX} rules in all files"))
            break
    return Loaded(tuple(rules), tuple(errors), len(paths))


def _names(directory: Path) -> tuple[list[str], list[PolicyError]]:
    """The policy files of a folder, and what is wrong with it.

    Hidden files and other suffixes are what editors and packaging leave about: not looked at. A
    `.policy` whose name nobody would read is an error, lest a rule be missing without a word.
    """
    names: list[str] = []
    errors: list[PolicyError] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if not name.endswith(SUFFIX) or name.startswith("."):
                    continue
                if len(names) + len(errors) >= FILES_MAX:
                    many = f"more than {FILES_MAX} policy files in one folder"
                    errors.append(PolicyError(_shown_path(directory), 0, 0, many))
                    break
                if _FILE_NAME.fullmatch(name):
                    names.append(name)
                else:
                    message = "a policy file's name has only 0-9 a-z _ . -"
                    errors.append(PolicyError(shown(name), 0, 0, message))
    except OSError as error:
        message = f"the policy folder cannot be read: {_why(error)}"
        errors.append(PolicyError(_shown_path(directory), 0, 0, message))
    return names, sorted(errors)


def _read_file(path: Path) -> bytes | str:
    """The content, or why there is none. Never waits: a FIFO is opened without its writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        return f"cannot be read: {_why(error)}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "is not a regular file"
        chunks, left = [], FILE_MAX + 1  # one more than is allowed, so that the parser refuses it
        while left > 0 and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        return f"cannot be read: {_why(error)}"
    finally:
        os.close(fd)
    return b"".join(chunks)


def _why(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "its symbolic links lead in a circle"
    return error.strerror or type(error).__name__


class PolicyLoader:
    """Keeps the snapshot in force and says how it stands.

    A fresh loader denies all; `reload` or `run` reads the folders.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        self._directories = [Path(directory) for directory in directories]
        self._snapshot = Snapshot.DENY_ALL
        self._loaded_at = ""
        self._errors: tuple[PolicyError, ...] = (
            PolicyError("", 0, 0, "the policy has not been read yet"),
        )

    @property
    def snapshot(self) -> Snapshot:
        """The rules in force. Take it once per decision: the next look may find another."""
        return self._snapshot

    @property
    def errors(self) -> tuple[PolicyError, ...]:
        """Everything that is wrong with the files as they are now; none when they are in force."""
        return self._errors

    def status(self) -> messages.PolicyStatus:
        """For answers: `loaded_at` is ISO 8601 local time, "" before the first good policy."""
        return messages.PolicyStatus(
            ok=not self._errors,
            loaded_at=self._loaded_at,
            rules=len(self._snapshot),
            errors=tuple(
                messages.PolicyErrorInfo(error.file, error.line, error.column, error.message)
                for error in _first(self._errors)
            ),
        )

    def reload(self) -> bool:
        """Reads the folders now; True when what they say is in force."""
        return self._take(read_policy(self._directories))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reads the folders, then again after every change, until cancelled.

        Raises nothing of its own: a folder that cannot be watched is read again now and then.
        """
        self.reload()
        task_status.started()
        complaint = ""
        while True:
            try:
                with FolderWatch(self._directories) as watch:
                    while True:
                        # Once more at the start: something may have changed before the watch began.
                        await self._reload_in_thread()
                        with trio.move_on_after(AGAIN if self._errors else math.inf):
                            await watch.changed()
                            await trio.sleep(SETTLE)
            except OSError as error:
                if _why(error) != complaint:
                    complaint = _why(error)
                    log.error("policy: the folders cannot be watched: %s", complaint)
            await trio.sleep(AGAIN)
            await self._reload_in_thread()

    async def _reload_in_thread(self) -> None:
        # A large policy takes longer to read than a request may wait.
        self._take(await trio.to_thread.run_sync(read_policy, self._directories))

    def _take(self, loaded: Loaded) -> bool:
        """The only place where the policy in force changes."""
        before, self._errors = set(self._errors), loaded.errors
        if loaded.errors:
            self._complain([error for error in loaded.errors if error not in before])
            return False
        if self._loaded_at and not before and self._snapshot.rules == loaded.rules:
            return True
        self._snapshot = Snapshot(loaded.rules)
        self._loaded_at = datetime.now().astimezone().isoformat(timespec="seconds")
        log.info("policy: %d rules of %d files are in force", len(loaded.rules), loaded.files)
        return True

    def _complain(self, news: list[PolicyError]) -> None:
        """Says each new error once: a folder may change often while a file stays broken."""
        if self._loaded_at:
            meanwhile = f"the policy of {self._loaded_at} stays in force"
        else:
            meanwhile = "there is no earlier policy: everything is denied"
        for error in _first(news):
            log.error("policy: %s (%s)", error, meanwhile)


def _first(errors: Sequence[PolicyError]) -> Sequence[PolicyError]:
    """As many as an answer or a log takes, the last saying how many were left off."""
    if len(errors) <= ERRORS_MAX:
        return errors
    more = PolicyError("", 0, 0, f"{len(errors) - ERRORS_MAX + 1} errors more")
    return (*errors[: ERRORS_MAX - 1], more)


def _shown_path(directory: Path) -> str:
    """A folder's name may be of any bytes; what is sent and logged is text of one line."""
    return printable_text(str(directory), PATH_SHOWN)
