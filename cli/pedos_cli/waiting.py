"""What a command prints while it waits for an operation, and when the wait is interrupted."""

from __future__ import annotations

import sys

# `signal` itself would import enum, without which a command starts faster.
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
"""What an operation of the service can wait for (pedos_protocol.messages.Step)."""


ENDING_SIGNALS = (SIGTERM, SIGHUP)
"""Signals that end a command, and print the same as Ctrl-C during a wait."""


class EndingSignal(KeyboardInterrupt):
    """One of ENDING_SIGNALS arrived."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number  # as shells say it


def _end(number: int, _frame: object) -> NoReturn:
    raise EndingSignal(number)


class Wait:
    """The wait for one request: what it waits for, and what continues without it.

    Within it, a signal that ends the command prints the same as Ctrl-C.
    """

    def __init__(self, note: Callable[[str], None], what: str, look: str) -> None:
        self._note = note
        self._what = what
        self._look = look
        self._said = ""
        self._step: Mapping[str, object] = {}

    def __enter__(self) -> Self:
        # An ignored signal, as under nohup, stays ignored.
        self._heeded = [number for number in ENDING_SIGNALS if getsignal(number) is SIG_DFL]
        for number in self._heeded:
            signal(number, _end)
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: object) -> None:
        for number in self._heeded:
            signal(number, SIG_DFL)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.interrupted()

    def told(self, step: Mapping[str, object] | None, is_long: bool) -> None:
        """Note what the service waits for, if it says so, and print it on a terminal if the wait is
        long."""
        self._step = step or {}
        if not is_long:
            return
        line = f"waiting for {_awaited(self._step) or self._what}"
        if line != self._said and sys.stderr is not None and sys.stderr.isatty():
            self._said = line
            self._note(f"{line} ...")

    def interrupted(self) -> None:
        """Print what continues without this command."""
        if not self._step:  # no step has begun, or the service tells none, as in a VM
            end = f"a question to dom0's user is taken back; else {self._what} goes on"
        elif self._step.get("step") == "answer":
            end = "the question to dom0's user is taken back"
        else:
            end = f"{self._what} goes on without this command"
        self._note(f"interrupted: {end}; to see how it ended: {self._look}")


def _awaited(step: Mapping[str, object]) -> str:
    """Return who has to act before the operation continues; nothing for a step that a newer service
    has."""
    words = STEPS.get(str(step.get("step")), "")
    return words.format(vm=show(step.get("vm")), device=show(step.get("device")))
