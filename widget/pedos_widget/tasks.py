"""The tasks of one window: started by its slots, ended when it is closed, and none of them ends the
program."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from pedos_cli.client import Unreachable
from pedos_protocol.errors import CallError, ProtocolError

from pedos_widget.calls import not_reached, not_understood, refusal
from pedos_widget.i18n import _

logger = logging.getLogger(__name__)

Job = Callable[[], Awaitable[None]]
StartSoon = Callable[[Job], object]


class Tasks:
    """`start_soon` is that of a nursery; `fail` shows a sentence about what did not work. `ended`
    is called if the nursery ends before the window: Qt does not quit while a window refuses to
    close, so none may then ask whether to save."""

    def __init__(
        self, start_soon: StartSoon, fail: Callable[[str], None], ended: Callable[[], None]
    ) -> None:
        self._start_soon = start_soon
        self._fail = fail
        self._ended = ended
        self._scopes: set[trio.CancelScope] = set()
        self._is_closed = False
        self.start(self._watch)

    async def _watch(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not self._is_closed:
                self._ended()

    def start(self, job: Job) -> trio.CancelScope:
        """Start a job; cancel the scope to end it."""
        scope = trio.CancelScope()

        async def run() -> None:
            self._scopes.add(scope)
            try:
                with scope:
                    await self._tried(job)
            finally:
                self._scopes.discard(scope)

        if not self._is_closed:
            self._start_soon(run)
        return scope

    async def _tried(self, job: Job) -> None:
        try:
            await job()
        except Unreachable as error:
            self._fail(not_reached(error))
        except CallError as error:
            self._fail(refusal(error))
        except ProtocolError as error:
            self._fail(not_understood(error))
        except Exception:  # a bug here must not take the tray and its questions with it
            logger.exception("a task of a window failed")
            self._fail(_("Internal error: the log has more."))

    def close(self) -> None:
        """End them all."""
        self._is_closed = True
        for scope in list(self._scopes):
            scope.cancel()
