"""Reports what an operation waits for to the command that waits for the operation.

Steps report with `at`, wherever they are called from; the context of the task tells which operation
they belong to. A quick operation sends nothing, others at most one notice per step: a step that
ends before its notice is sent is not reported any more.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import trio
from pedos_protocol.messages import OperationStep, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_protocol.messages import Step

# Seconds before an operation reports anything. A command says after one second what it waits for,
# and should know by then.
TELL_AFTER = 0.7
# Bytes that may wait for a command that does not read: a few notices, each of which is up to date
# when it is sent and old when it is read.
UNREAD_MAX = 4096


class Listener(Protocol):
    """The part of a Peer that this needs."""

    async def notify(self, method: str, params: dict[str, object]) -> None: ...

    async def drained(self, below: int) -> None: ...


_current: ContextVar[_Progress | None] = ContextVar("progress", default=None)


def at(step: Step, vm: str, device: object = "") -> None:
    """The operation that this is part of waits from now on for `vm` to do `step`."""
    progress = _current.get()
    if progress is not None:
        progress.at(OperationStep(progress.request, step, vm, str(device)))


@contextlib.contextmanager
def told(request: str, listener: Listener, background: trio.Nursery | None) -> Iterator[None]:
    """Within this, a task in `background`, which ends with it, reports to `listener` what the
    operation of this task waits for; to no client if that is None."""
    progress = None if background is None else _Progress(request)
    if progress is not None and background is not None:
        background.start_soon(progress.tell, listener)
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)
        if progress is not None:
            progress.scope.cancel()


class _Progress:
    def __init__(self, request: str) -> None:
        self.request = request
        self.scope = trio.CancelScope()
        self._step: OperationStep | None = None
        self._changed = trio.Event()

    def at(self, step: OperationStep) -> None:
        self._step = step
        self._changed.set()

    async def tell(self, listener: Listener) -> None:
        with self.scope:
            await trio.sleep(TELL_AFTER)
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                assert self._step is not None
                await listener.notify("operation.step", to_wire(self._step))
                await listener.drained(UNREAD_MAX)
