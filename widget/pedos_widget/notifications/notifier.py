"""Tells a person what happened to devices, by the desktop's notifications."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from pedos_widget.notifications.daemon import Daemon
from pedos_widget.notifications.plan import Note, Plan

if TYPE_CHECKING:
    from pedos_widget.bus import Bus
    from pedos_widget.model.view import Happened, Result

    class Source(Protocol):
        """The part of a Controller that this needs."""

        def on_happened(self, callback: Callable[[Happened], None]) -> None: ...
        def on_result(self, callback: Callable[[Result], None]) -> None: ...


class Notifier:
    """What comes from the controller goes into a `Plan`, and what the plan says to the daemon."""

    def __init__(
        self, bus: Bus, controller: Source, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._plan = Plan()
        self._news = trio.Event()
        self._daemon = Daemon(bus, self._plan.forget, self._plan.closed)
        controller.on_happened(self._happened)
        controller.on_result(self._result)

    def _happened(self, happened: Happened) -> None:
        self._plan.happened(happened, self._clock())
        self._news.set()

    def _result(self, result: Result) -> None:
        self._plan.result(result, self._clock())
        self._news.set()

    async def run(self) -> None:
        """Tells, one after the other, until this is cancelled. A daemon that is slow, or hangs,
        delays what is told and nothing else; the plan sums up meanwhile."""
        while True:
            await trio.lowlevel.checkpoint()
            await self._until_due()
            for each in self._plan.due(self._clock()):
                if isinstance(each, Note):
                    await self._show(each)
                else:
                    await self._daemon.close(each.number)

    async def _until_due(self) -> None:
        while (wake_at := self._plan.wake_at()) is None or wake_at > self._clock():
            wait = float("inf") if wake_at is None else wake_at - self._clock()
            with trio.move_on_after(max(0, wait)):
                await self._news.wait()
            self._news = trio.Event()

    async def _show(self, note: Note) -> None:
        is_there = await self._daemon.is_there()
        generation, number = self._plan.generation, 0
        if is_there:
            number = await self._daemon.show(note, self._plan.replaces(note))
        self._plan.posted(note.key, number, generation)
