"""The environment of services: as after a login of the user, and what is said of the call."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pedos_host.system_errors import what_is_wrong
from pedos_protocol.keeper_link import Run

from pedos_keeper import spawning
from pedos_keeper.children import Children
from pedos_keeper.outputs import output_of

log = logging.getLogger(__name__)

# What systemd says to the keeper alone (systemd.exec(5)), and what a shell says of itself.
_OWN: Final = frozenset(
    (
        *("INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MAINPID", "MANAGERPID"),
        *("MANAGERPIDFDID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
        *("CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "MEMORY_PRESSURE_WATCH"),
        *("MEMORY_PRESSURE_WRITE", "_", "SHLVL", "PWD", "OLDPWD"),
    )
)
#: The call that a service and all that it starts belong to.
CALL_ID: Final = "PEDOS_CALL_ID"
_OWN_PREFIXES: Final = ("LISTEN_", "QREXEC_", "PEDOS_FAULT", CALL_ID)
_SHELL: Final = "/bin/sh"
# The profile's own output goes to the log; what it sets comes by a descriptor of its own.
_ENV_FILE: Final = 3
_ENV_SCRIPT: Final = f"exec /usr/bin/env -0 >&{_ENV_FILE}"
# Seconds. A profile is read in milliseconds, on an emulated processor in half a second; one that
# waits for something would hold up the first call beyond dom0's ten.
LOGIN_SECONDS: Final = 5.0
# Seconds until a profile that has failed is read again: one that takes too long takes that each
# time, and calls wait for it.
AGAIN_SECONDS: Final = 60.0


def as_started() -> dict[str, str]:
    """The environment that this program was started with: where no locale is set, Python has added
    one to its own (PEP 538). OSError."""
    with open("/proc/self/environ", "rb") as file:
        return parsed(file.read())


def parsed(raw: bytes) -> dict[str, str]:
    """An environment as the kernel shows it, and as `env -0` does."""
    pairs = (entry.partition("=") for entry in os.fsdecode(raw).split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def without_own(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what is said to this program alone, or of another call."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OWN and not name.startswith(_OWN_PREFIXES)
    }


class Environment(dict[str, str]):
    """One that many processes get. `lines` is it as they have it: to write that takes longer than
    to start one of them."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.lines: Final = tuple(map(os.fsencode, spawning.lines_of(variables)))

    def lines_with(self, more: Mapping[str, str]) -> Sequence[str | bytes]:
        """With more variables, which go before those that have the same name here."""
        if self.keys() & more.keys():
            return spawning.lines_of({**self, **more})
        return [*self.lines, *spawning.lines_of(more)]


def mark_of(call: str) -> bytes:
    """The line of the environment that all have which this call has started."""
    return f"{CALL_ID}={call}".encode("ascii")


def of_call(run: Run) -> dict[str, str]:
    """What a service is told of its call."""
    told = {
        CALL_ID: run.call,
        "QREXEC_REMOTE_DOMAIN": run.source,
        "QREXEC_SERVICE_FULL_NAME": run.service + run.argument,
        "QREXEC_SERVICE_ARGUMENT": run.argument[1:],
        "QREXEC_REQUESTED_TARGET_TYPE": target_type(run.target),
    }
    if run.target.startswith("@"):
        told["QREXEC_REQUESTED_TARGET_KEYWORD"] = run.target[1:]
    elif run.target:
        told["QREXEC_REQUESTED_TARGET"] = run.target
    return told


def target_type(target: str) -> str:
    """The type of what a caller has asked for: "" if that is not told."""
    if not target:
        return ""
    return "keyword" if target.startswith("@") else "name"


class LoginEnvironment:
    """What a login shell makes of this program's environment. It is read once, at the first need:
    a shell that reads profiles takes longer than a service. If that fails, services do without for
    a while."""

    def __init__(
        self,
        children: Children,
        own: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = children
        self._own = Environment(own)
        self._clock = clock
        self._lock = threading.Lock()
        self._found: Environment | None = None
        self._failed: float | None = None  # when

    def get(self) -> Environment:
        """The environment; the program's own if the profile fails, which the log says."""
        with self._lock:
            if self._found is None and self._may_read():
                try:
                    self._found = Environment(without_own(self._read()))
                except OSError as error:
                    self._failed = self._clock()
                    log.error(
                        "the environment after a login is not known: %s", what_is_wrong(error)
                    )
            return self._own if self._found is None else self._found

    def _may_read(self) -> bool:
        return self._failed is None or self._clock() - self._failed >= AGAIN_SECONDS

    def _read(self) -> dict[str, str]:
        # The dash makes it a login shell.
        arguments = ["-sh", "-c", _ENV_SCRIPT]
        raw = output_of(
            self._children, arguments, self._own, seconds=LOGIN_SECONDS, by=_ENV_FILE, path=_SHELL
        )
        found = parsed(raw)
        if not found:
            raise OSError(errno.ENODATA, "the profile ends the shell")
        return found
