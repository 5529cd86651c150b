"""What a command says while it waits for an operation, and when it is told to wait no longer."""

from __future__ import annotations

import sys

# `signal` itself would bring enum, which a command is quicker without.
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIGHUP,
    SIGTERM,
    getsignal,
    signal,
)

from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn, Self

STEPS = {
    "connect": "the agent of {vm} to connect",
    "look": "{vm} to say what {device} is",
    "answer": "dom0's user to answer (qvm-prompt)",
    "lend": "{vm} to lend {device}",
    "attach": "the toolstack to attach {device} to {vm}",
    "take": "{vm} to take {device}",
    "return": "{vm} to give {device} back",
    "detach": "the toolstack to take {device} from {vm}",
    "end": "{vm} to end the lending of {device}",
    "make": "{vm} to be made",
    "boot": "{vm} to boot, and its agent to connect",
    "stop": "{vm} to shut down",
}
"""What the service can say that an operation waits for (pedos_protocol.messages.Step)."""


ENDING = (SIGTERM, SIGHUP)
"""Signals that end a command, and say so as Ctrl-C does while it waits."""


class Told(KeyboardInterrupt):
    """A signal of ENDING came."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number  # as shells say it


def _end(number: int, _frame: object) -> NoReturn:
    raise Told(number)


class Wait:
    """The patience of a person with one request: what is waited for, and what goes on without.

    Within it, a signal that ends the command says the same as Ctrl-C."""

    def __init__(self, note: Callable[[str], None], what: str, look: str) -> None:
        self._note = note
        self._what = what
        self._look = look
        self._said = ""
        self._step: Mapping[str, object] = {}

    def __enter__(self) -> Self:
        # One that is ignored, by nohup say, stays so.
        self._heeded = [number for number in ENDING if getsignal(number) is SIG_DFL]
        for number in self._heeded:
            signal(number, _end)
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: object) -> None:
        for number in self._heeded:
            signal(number, SIG_DFL)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.interrupted()

    def told(self, step: Mapping[str, object] | None, is_long: bool) -> None:
        """Note what the service waits for, as far as it says it, and say it on a terminal when it
        takes long."""
        self._step = step or {}
        if not is_long:
            return
        line = f"waiting for {_awaited(self._step) or self._what}"
        if line != self._said and sys.stderr is not None and sys.stderr.isatty():
            self._said = line
            self._note(f"{line} ...")

    def interrupted(self) -> None:
        """Say what goes on without the one who waited."""
        if not self._step:  # it has come to none yet, or tells none, as in a VM
            end = f"a question to dom0's user is taken back; else {self._what} goes on"
        elif self._step.get("step") == "answer":
            end = "the question to dom0's user is taken back"
        else:
            end = f"{self._what} goes on without this command"
        self._note(f"interrupted: {end}; to see how it ended: {self._look}")


def _awaited(step: Mapping[str, object]) -> str:
    """Return who has to do what before an operation goes on; nothing for a step of a service that
    is newer than this."""
    words = STEPS.get(str(step.get("step")), "")
    return words.format(vm=show(step.get("vm")), device=show(step.get("device")))
