"""The service's way to the audit log: in order, in a thread, and before the answer is sent.

A disk may be slow. A line waits for it here, and so does the answer to its request (`written`); the
event loop, and all other requests, do not.

The way to the thread and back costs more than the line. So a line for which nobody waits goes with
the next one for which somebody does, or after a moment (LINGER): a call of a service has three
lines, and only an answer behind the first.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio
from pedos_host.threads import NoThreadError
from pedos_vchan.event_loop import event_loop

from pedos_dom0.audit.log import Record, make_record
from pedos_dom0.audit.tail import last_lines
from pedos_dom0.tasks.disk import NO_THREAD_SECONDS, in_thread, start_in_thread

if TYPE_CHECKING:
    from outcome import Outcome

    from pedos_dom0.audit.log import Audit
    from pedos_dom0.audit.tail import Tail
    from pedos_dom0.tasks.disk import Start

logger = logging.getLogger(__name__)

# Lines that wait for the disk. Requests wait with theirs, and there are some two hundred at most;
# what VMs cause beside that is throttled (throttle.py). More means that the disk hangs; then lines
# must not fill the memory: they are lost, which is logged and counted.
WAITING_MAX = 2048
# Seconds for which a line may wait for others: no person notices them, and a service that is killed
# then has lost nothing that it has told anybody.
LINGER = 0.01
# Lines that do not wait for more.
BATCH = 64


class AuditQueue:
    """Writes to `log`. Before `run` is started and after it has ended, a line is written at once:
    no client is served then who would wait."""

    def __init__(self, log: Audit, start: Start = start_in_thread) -> None:
        self._log = log
        self._start = start
        self._runs = False
        self._waiting: deque[Record] = deque()
        # The number of lines ever accepted, and how many of these are written.
        self._taken = 0
        self._begun = 0  # to be written
        self._written = 0
        # Request -> the number of its last line, while that is not written.
        self._last: dict[object, int] = {}
        self._is_writing = False
        self._is_due = False  # the next lines follow at once
        self._broken = trio.Event()
        self._error: BaseException | None = None  # a mistake of this program
        self.deadline = 0.0  # of those that linger; for the event loop's sweeper
        self._lingers = False
        self._waiters = trio.lowlevel.ParkingLot()  # lines were written
        self._lost = 0

    @property
    def trouble(self) -> str | None:
        """Why lines are being lost, if they are."""
        if self._lost:
            return f"the audit log's disk does not keep up: {self._lost} lines are lost"
        return self._log.trouble

    def write(self, event: str, **fields: object) -> None:
        """Queues one line: time (UTC), event and `fields` as they are now, bounded and escaped."""
        record = make_record(event, fields)
        if not self._runs:
            self._log.append(record)
            return
        if len(self._waiting) >= WAITING_MAX:
            self._lost += 1
            if self._lost == 1:
                logger.critical("audit: %s; more are being lost", self.trouble)
            return
        if self._lost:
            record["lost_before"], self._lost = self._lost, 0
        self._taken += 1
        self._waiting.append(record)
        if (request := fields.get("request")) is not None:
            self._last[request] = self._taken
        if len(self._waiting) >= BATCH:
            self._write_now()
        else:
            self._linger(LINGER)

    def _linger(self, seconds: float) -> None:
        if not self._lingers:
            self._lingers = True
            loop = event_loop()
            self.deadline = loop.time() + seconds
            loop.sweeper.watch(self)

    def _linger_no_more(self) -> None:
        if self._lingers:
            self._lingers = False
            event_loop().sweeper.forget(self)

    def expire(self) -> None:
        """The lines that linger are written."""
        self._lingers = False
        self._write_now()

    def _write_now(self) -> None:
        """Has the lines that wait written, or next if others are being written."""
        if self._is_writing:
            self._is_due = True
            return
        if not self._waiting:
            return
        self._linger_no_more()
        batch = list(self._waiting)
        try:
            self._start(partial(self._append, batch), partial(self._are_written, len(batch)))
        except NoThreadError:
            self._linger(NO_THREAD_SECONDS)
            return
        self._is_writing = True
        self._begun += len(batch)

    def _are_written(self, count: int, result: Outcome[None]) -> None:
        self._is_writing = False
        try:
            result.unwrap()
        except BaseException as error:  # no answer goes out: `run` ends the service
            self._error = error
            self._broken.set()
            self._waiters.unpark_all()
            return
        for _ in range(count):
            self._waiting.popleft()
        self._note(count)
        if self._is_due:
            self._is_due = False
            self._write_now()

    def owes(self, request: str) -> bool:
        """Whether a line about this request is not written yet."""
        return request in self._last

    async def written(self, request: str | None = None) -> None:
        """Returns when all lines about this request are written, or all from before this call. No
        checkpoint if they are written already."""
        number = self._taken if request is None else self._last.get(request, 0)
        while self._written < number:
            if self._begun < number:
                self._write_now()
            await self._waiters.park()

    async def recent(self, count: int, size: int, device: str | None = None) -> Tail:
        """As `last_lines`, of all that was queued before this call."""
        await self.written()
        work = partial(last_lines, self._log.path, count, size, device)
        return await in_thread(work, self._start)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Has the queued lines written, until cancelled; then the rest."""
        self._runs = True
        task_status.started()
        try:
            await self._broken.wait()
            assert self._error is not None
            raise self._error
        finally:
            with trio.CancelScope(shield=True):
                while self._is_writing:
                    await self._waiters.park()
            self._runs = False
            self._linger_no_more()
            self._append(list(self._waiting))
            self._note(len(self._waiting))
            self._waiting.clear()

    def close(self) -> None:
        """Safe to call twice; not while `run` runs."""
        self._log.close()

    def _append(self, records: list[Record]) -> None:
        for record in records:
            self._log.append(record)

    def _note(self, count: int) -> None:
        """`count` more lines are written: wakes the requests that wait for them."""
        self._written += count
        self._begun = max(self._begun, self._written)
        self._last = {
            request: number for request, number in self._last.items() if number > self._written
        }
        self._waiters.unpark_all()
