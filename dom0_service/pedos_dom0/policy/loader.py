"""The snapshot of the policy folders that is in force, and how it follows the files.

A policy is accepted as a whole or not at all: with one error in one file, the previous snapshot
stays in force. Before the first good one that is Snapshot.DENY_ALL.

A thread reads, indexes and compares a large policy, and frees the one that it replaces: each of
these steps would hold up the event loop for longer than a request may wait. Since only one thread
runs Python at a time, that thread yields to the loop every fraction of a millisecond.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import trio
from pedos_protocol import messages
from pedos_protocol.fields import ERRORS_MAX

from pedos_dom0.tasks.disk import in_thread

from .files import shown_path
from .following import follow
from .model import PolicyError
from .reading import Loaded, read_policy
from .snapshot import Snapshot

__all__ = ["Loaded", "PolicyLoader", "read_policy"]

log = logging.getLogger(__name__)

# Seconds that the thread works before it yields, and for which it then sleeps. Without this,
# another thread that wants to run Python waits 5 ms, several times a request.
WORK = 0.0004
REST = 0.0002
# How many rules of a replaced snapshot are freed at a time: freeing all is a long step.
_FREED_AT_ONCE = 64


class _YieldToLoop:
    """Sleeps when it is called and WORK has passed since the last time."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + WORK

    def __call__(self) -> None:
        if time.perf_counter() >= self._until:
            time.sleep(REST)
            self._until = time.perf_counter() + WORK


def _read_in_thread(directories: Sequence[Path], old: list[Snapshot]) -> Loaded:
    """The policy, read after the snapshots in `old` have been freed."""
    yield_now = _YieldToLoop()
    while old:
        rules = list(old.pop().rules)
        while rules:
            del rules[-_FREED_AT_ONCE:]
            yield_now()
    return read_policy(directories, yield_now=yield_now)


class PolicyLoader:
    """Holds the snapshot in force and reports its status.

    A fresh loader denies all; `reload` or `run` reads the folders.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        self._directories = [Path(directory) for directory in directories]
        #: The rules in force. Take it once per decision: the next look may find another.
        self.snapshot: Snapshot = Snapshot.DENY_ALL
        self._loaded_at = ""
        self._digest = b""
        self._files = 0
        self._watched: tuple[Path, ...] = tuple(self._directories)
        # The replaced ones. A decider drops its own at the next request; the last reference is then
        # here, and the thread of the next reading frees it instead of the loop.
        self._old: list[Snapshot] = []
        self._followers: list[Callable[[], None]] = []
        self._errors: tuple[PolicyError, ...] = (
            PolicyError("", 0, 0, "the policy has not been read yet"),
        )

    def follow(self, follower: Callable[[], None]) -> None:
        """Calls `follower` when other rules are in force."""
        self._followers.append(follower)

    @property
    def errors(self) -> tuple[PolicyError, ...]:
        """All errors of the files as they are now; none if they are in force."""
        return self._errors

    def status(self) -> messages.PolicyStatus:
        """For answers: `loaded_at` is ISO 8601 local time, "" before the first good policy."""
        return messages.PolicyStatus(
            ok=not self._errors,
            loaded_at=self._loaded_at,
            rules=len(self.snapshot),
            errors=tuple(
                messages.PolicyErrorInfo(
                    error.file, error.line, error.column, error.message, error.help, error.text
                )
                for error in self._errors[:ERRORS_MAX]
            ),
            errors_left_out=max(0, len(self._errors) - ERRORS_MAX),
            folders=tuple(shown_path(directory) for directory in self._directories),
            files=self._files,
        )

    def reload(self) -> bool:
        """Reads the folders now; True if their content is in force."""
        return self._take(read_policy(self._directories))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reads the folders, then again after every change, until cancelled.

        Raises no errors of its own: a folder that cannot be watched is read at intervals.
        """
        self.reload()
        task_status.started()
        await follow(
            lambda: self._watched,
            self._reload_in_thread,
            lambda: bool(self._errors),
            lambda reason: log.error("policy: the folders cannot be watched: %s", reason),
        )

    async def _reload_in_thread(self) -> None:
        self._take(await in_thread(partial(_read_in_thread, self._directories, self._old)))

    def _take(self, loaded: Loaded) -> bool:
        """The only place that changes the policy in force."""
        before, self._errors = set(self._errors), loaded.errors
        self._watched = loaded.watched
        if loaded.errors:
            self._complain([error for error in loaded.errors if error not in before])
            return False
        if self._loaded_at and not before and self._digest == loaded.digest:
            return True
        if self._loaded_at:
            self._old.append(self.snapshot)
        self.snapshot, self._digest = loaded.snapshot, loaded.digest
        self._files = len(loaded.files)
        self._loaded_at = datetime.now().astimezone().isoformat(timespec="seconds")
        log.info("policy: %d rules of %d files are in force", len(loaded.rules), self._files)
        for follower in self._followers:
            follower()
        return True

    def _complain(self, news: list[PolicyError]) -> None:
        """Logs each new error once: a folder may change often while a file stays broken."""
        if self._loaded_at:
            meanwhile = f"the policy of {self._loaded_at} stays in force"
        else:
            meanwhile = "there is no earlier policy: everything is denied"
        for error in _first(news):
            log.error("policy: %s (%s)", error, meanwhile)


def _first(errors: Sequence[PolicyError]) -> Sequence[PolicyError]:
    """As many as fit into the log, the last saying how many were left out."""
    if len(errors) <= ERRORS_MAX:
        return errors
    more = PolicyError("", 0, 0, f"{len(errors) - ERRORS_MAX + 1} errors more")
    return (*errors[: ERRORS_MAX - 1], more)
