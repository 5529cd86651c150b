"""Facts about VMs: the hypervisor's list combined with the administrator's `vms.d`.

Like the policy, `vms.d` is accepted as a whole or not at all: with a mistake in one file, the
previous facts stay. Before the first good reading there are no facts, and everything is denied: a
rule that denies a tag must not be skipped because the tags could not be read.
"""

from __future__ import annotations

import logging
import os
import re
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import PolicyErrorInfo
from pedos_protocol.names import printable_text, shown

from pedos_dom0.drivers.base import DOM0_NAME, DomainInfo
from pedos_dom0.policy.following import follow
from pedos_dom0.policy.system import ADMIN_TYPE, RUNNING, System, VmFacts
from pedos_dom0.policy.whole_file import read_whole, real_path, why
from pedos_dom0.tasks.disk import in_thread
from pedos_dom0.tasks.rate_limit import RateLimit
from pedos_dom0.vms.facts_file import FILE_MAX, FactsError, Said, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pedos_dom0.drivers.base import Driver

logger = logging.getLogger(__name__)

SUFFIX = ".toml"
_FILE_NAME = re.compile(r"[0-9a-z_.-]+\.toml")
# A host has a handful of files; the bounds keep a folder that was filled by mistake from being read
# for minutes.
FILES_MAX = 256
BYTES_MAX = 4 * FILE_MAX
# How often a pass is repeated that finds at its end that the files have changed.
PASSES_MAX = 3
# Readings of a folder that keeps changing: (at once, per second after that). Each may be a line in
# log and audit, and with a large policy takes a processor half a second.
RELOAD_RATE = (32, 1.0)
# Errors that are kept.
ERRORS_MAX = 64
# Characters of a folder's name in an error.
_FOLDER_SHOWN = 128


def reload_rate() -> RateLimit:
    """For facts and policy alike."""
    return RateLimit(burst=RELOAD_RATE[0], per_second=RELOAD_RATE[1])


@frozen
class Read:
    """The result of one pass over the folder. With any error, `said` is not for use."""

    said: Mapping[str, VmFacts]
    errors: tuple[FactsError, ...]
    files: int
    # The folders in which a change may change the content of the files.
    watched: tuple[Path, ...]


def read_facts(folder: Path) -> Read:
    """The content of the folder's files, in one pass during which nothing changed; never raises."""
    for _ in range(PASSES_MAX):
        before = _fingerprint(folder)
        read = _pass(folder)
        if _fingerprint(folder) == before:
            return read
    changing = FactsError(_named(folder), 0, 0, "the files kept changing while they were read")
    return attrs.evolve(read, said={}, errors=(*read.errors, changing))


def _fingerprint(folder: Path) -> list[object]:
    seen: list[object] = []
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except OSError as error:
        return [error.errno]
    for name in names[: FILES_MAX + 1]:
        try:
            found = (folder / name).stat()
            seen.append((name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        except OSError as error:
            seen.append((name, error.errno))
    return seen


def _pass(folder: Path) -> Read:
    try:
        names = sorted(
            name
            for name in os.listdir(folder)
            if name.endswith(SUFFIX) and not name.startswith(".")
        )
    except OSError as error:
        # Also if the folder is missing: one that never existed looks the same as one that got lost.
        message = f"the folder of VMs' facts cannot be read: {why(error)}"
        right = "make one, which may be empty" if isinstance(error, FileNotFoundError) else ""
        return Read({}, (FactsError(_named(folder), 0, 0, message, right),), 0, (folder,))
    watched = {folder: None}
    said: dict[str, tuple[str, Said]] = {}
    errors: list[FactsError] = []
    size = 0
    if len(names) > FILES_MAX:
        errors.append(FactsError(_named(folder), 0, 0, f"more than {FILES_MAX} files"))
    for name in names[:FILES_MAX]:
        file = f"{_named(folder)}/{name}"
        if not _FILE_NAME.fullmatch(name):
            file = f"{_named(folder)}/{printable_text(name, _FOLDER_SHOWN)}"
            right = "its name has only 0-9 a-z _ . -"
            errors.append(FactsError(file, 0, 0, f"{shown(name)} is not read", right))
            continue
        try:
            # A link's target may be written to in a folder of its own.
            watched[real_path(folder / name).parent] = None
            data = read_whole(folder / name, FILE_MAX)
        except OSError as error:
            data = f"cannot be looked at: {why(error)}"
        if isinstance(data, str):
            errors.append(FactsError(file, 0, 0, data))
            continue
        size += len(data)
        if size > BYTES_MAX:
            errors.append(FactsError(file, 0, 0, f"more than {BYTES_MAX} bytes in all files"))
            break
        found, wrong = parse(file, data)
        errors += wrong
        for vm, what in found.items():
            if vm in said:
                where = f"{said[vm][0]}:{said[vm][1].line}"
                message = f"{vm} is described in {where} already"
                errors.append(FactsError(file, what.line, 0, message, "put it into one table"))
            else:
                said[vm] = (file, what)
    facts = {} if errors else {vm: what.facts for vm, (_, what) in said.items()}
    if len(errors) > ERRORS_MAX:
        more = f"{len(errors) - ERRORS_MAX} errors more"
        errors[ERRORS_MAX:] = [FactsError(_named(folder), 0, 0, more)]
    return Read(facts, tuple(errors), len(names), tuple(watched))


def _named(folder: Path) -> str:
    return printable_text(folder.name, _FOLDER_SHOWN)


class Facts:
    """Holds the facts in force and reports their status. `folder` None: only the driver's."""

    def __init__(self, driver: Driver, folder: Path | None = None) -> None:
        self._driver = driver
        self._folder = folder
        self._said: Mapping[str, VmFacts] = {}
        #: False before the first good reading: then nothing can be decided.
        self.known = folder is None
        self._watched: tuple[Path, ...] = () if folder is None else (folder,)
        self._since = ""
        self._rate = reload_rate()
        # VMs that are being started: they get their devices once they run.
        self.starting: set[str] = set()
        self._errors: tuple[FactsError, ...] = ()
        # The inputs of the last System.
        self._made_of: object = None
        self._system = System({})
        self._followers: list[Callable[[], None]] = []
        self.on_read: Callable[[Read, bool], None] = lambda _read, _taken: None

    def follow(self, follower: Callable[[], None]) -> None:
        """Calls `follower` when other facts of the folder are in force."""
        self._followers.append(follower)

    @property
    def errors(self) -> tuple[FactsError, ...]:
        """The errors of the files as they are now."""
        return self._errors

    @property
    def since(self) -> str:
        """When the facts in force were read, ISO 8601; "" before the first time."""
        return self._since

    @property
    def system(self) -> System:
        """The facts about all VMs now; the same object for as long as nothing changes."""
        made_of = (self._said, tuple(self._driver.domains().values()), frozenset(self.starting))
        if made_of != self._made_of:
            self._made_of = made_of
            self._system = _system(*made_of)
        return self._system

    def errors_for_status(self) -> tuple[PolicyErrorInfo, ...]:
        """The errors in the form of the policy's status."""
        return tuple(
            PolicyErrorInfo(
                file=error.file,
                line=error.line,
                column=error.column,
                message=error.message,
                help=error.help,
                text=error.text,
            )
            for error in self._errors
        )

    def reload(self) -> bool:
        """Reads the folder now; True if its content is in force."""
        return self._folder is None or self._take(read_facts(self._folder))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reads the folder, then again after every change, until cancelled."""
        self.reload()
        task_status.started()
        if self._folder is None:
            return
        folder = self._folder
        await follow(
            lambda: self._watched,
            lambda: self._reload_in_thread(folder),
            lambda: bool(self._errors),
            lambda reason: logger.error("facts: %s cannot be watched: %s", folder, reason),
        )

    async def _reload_in_thread(self, folder: Path) -> None:
        await self._rate.turn()
        self._take(await in_thread(partial(read_facts, folder)))

    def _take(self, read: Read) -> bool:
        """The only place that changes the facts in force."""
        self._watched = read.watched
        before, self._errors = self._errors, read.errors
        if read.errors:
            news = [error for error in read.errors if error not in before]
            meanwhile = (
                f"those of {self._since} stay in force"
                if self.known
                else "there are no earlier ones: everything is denied"
            )
            for error in news:
                logger.error("facts: %s (%s)", error, meanwhile)
            if news:
                self.on_read(read, False)
            return False
        if self.known and self._since and not before and read.said == self._said:
            return True
        self._said = read.said
        self.known = True
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        logger.info("facts: %d VMs of %d files are described", len(read.said), read.files)
        self.on_read(read, True)
        for follower in self._followers:
            follower()
        return True


def _system(
    said: Mapping[str, VmFacts], domains: Sequence[DomainInfo], starting: frozenset[str]
) -> System:
    """VMs are those of the hypervisor; facts about others wait until these exist."""
    dom0 = said.get(DOM0_NAME, VmFacts(DOM0_NAME, type=ADMIN_TYPE))
    facts = {DOM0_NAME: attrs.evolve(dom0, power_state=RUNNING)}
    for domain in domains:
        vm = said.get(domain.name, VmFacts(domain.name))
        state = RUNNING if domain.name in starting else domain.state
        facts[domain.name] = attrs.evolve(vm, power_state=state)
    return System(facts)
