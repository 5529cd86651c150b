"""Lines about calls of services that a VM may make: whole stories first, then sums that name them.

A VM may call as often as it likes, and three lines for each call would push out of the log what
others did (see allowance.py). So a call has all its lines or none: beyond CALL_LINES within
CALL_INTERVAL, or without lines in the VM's allowance, it is a part of a sum (call_sum.py), which is
written when the interval is over. A service that is started in a VM for the first time in this
interval has the lines of its beginning and end all the same, so that no flood of one service hides
another one's first call, nor one of names that start nothing.

The programs of one user of dom0's desktop count as one VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_vchan.event_loop import event_loop

from pedos_dom0.audit.allowance import Allowances
from pedos_dom0.audit.call_sum import CallSum

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_dom0.audit.call_sum import Called
    from pedos_dom0.audit.log import AuditWriter

# Seconds of one sum: 144 a day of a VM, of 15 KB at most, are less than its allowance is.
CALL_INTERVAL = 600.0
# Lines of one VM within that: of some sixty calls a minute, for as long as its allowance lasts.
CALL_LINES = 1920
# A decision, the beginning and the end.
LINES_PER_CALL = 3
# Calls that have their lines although these are used up, as the first ones of their service in that
# VM. A VM that uses them all has not many more lines a day than its allowance.
FIRSTS_MAX = 8
# Services in VMs that are known to be called within an interval; any further one is a first one.
PAIRS_MAX = 64
# Calls of which it is known whether they have lines: some 128 of each VM run or wait.
KNOWN_MAX = 8192

# A call has its lines; or it is counted, and no service was started yet, or one was.
WHOLE, COUNTED, BEGUN = "whole", "counted", "begun"


@attrs.define(eq=False)
class _Heard:
    """What one VM has called since `began`."""

    vm: str
    began: float
    over: Callable[[_Heard], None]
    lines: int = 0
    firsts: int = 0
    pairs: set[tuple[str, str]] = attrs.field(factory=set)
    sum: CallSum | None = None
    deadline: float = 0.0  # of the sum; for the event loop's sweeper

    def expire(self) -> None:
        """The time of the sum is over."""
        self.over(self)


class CallThrottle:
    """Writes lines about calls into the audit log. One of these serves all VMs."""

    def __init__(
        self, audit: AuditWriter, time: Callable[[], float], after: int = CALL_LINES
    ) -> None:
        """`time` is trio's clock, in seconds."""
        self._audit = audit
        self._time = time
        self._after = after
        self._heard: dict[str, _Heard] = {}
        self._allowance = Allowances()
        # By request.
        self._known: dict[str, str] = {}

    def counts(
        self,
        event: str,
        called: Called,
        *,
        of: str,
        throttled: bool,
        request: str,
        call_id: str | None = None,
        has_begun: bool = False,
        outcome: str | None = None,
    ) -> bool:
        """Whether a line is counted instead of written: if not, `write` follows.

        `call_id` comes once for each call, with the line about its beginning, and `has_begun` if a
        service was started; `outcome` comes with the last line.
        """
        if not throttled:
            return False
        now = self._time()
        heard = self._heard.get(of)
        if heard is None:
            heard = self._heard[of] = _Heard(of, now, self._interval_over)
        elif now - heard.began >= CALL_INTERVAL:
            self._interval_over(heard)
        before = self._known.get(request)
        state = before or self._at_first(heard, now)
        is_first = has_begun and self._is_first(heard, called)
        if is_first and state != WHOLE and heard.firsts < FIRSTS_MAX:
            heard.firsts += 1
            state = WHOLE
        if state == COUNTED and has_begun:
            state = BEGUN
        if before is None and len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[request] = state
        if state == WHOLE:
            self._allowance.spend(of, now)
            return False
        counted = self._sum(heard)
        counted.note(event, request, is_new=before is None, call_id=call_id)
        of_service = called if state == BEGUN else None
        if call_id is not None:
            counted.began(of_service)
        if outcome is not None:
            counted.ended(of_service, outcome)
        return True

    def forget(self, request: str) -> None:
        """The call is over, and has no further line. Fine if there was none."""
        self._known.pop(request, None)

    def write(self, event: str, **fields: object) -> None:
        """One line that `counts` does not count."""
        self._audit.write(event, **fields)

    def flush_all(self) -> None:
        """The service ends: no sum is lost."""
        for heard in self._heard.values():
            self._write_sum(heard)

    def _at_first(self, heard: _Heard, now: float) -> str:
        """Whether a call has its lines because there are some."""
        if heard.lines < self._after and not self._allowance.wait(heard.vm, now):
            heard.lines += LINES_PER_CALL
            return WHOLE
        return COUNTED

    def _is_first(self, heard: _Heard, called: Called) -> bool:
        pair = (called.service, called.target)
        if pair in heard.pairs:
            return False
        if len(heard.pairs) < PAIRS_MAX:
            heard.pairs.add(pair)
        return True

    def _sum(self, heard: _Heard) -> CallSum:
        """The present one."""
        if heard.sum is None:
            heard.sum = CallSum()
            heard.deadline = heard.began + CALL_INTERVAL
            event_loop().sweeper.watch(heard)
        return heard.sum

    def _interval_over(self, heard: _Heard) -> None:
        heard.lines = 0  # the VM's allowance bounds what it writes in a day
        heard.firsts = 0
        heard.pairs.clear()
        self._write_sum(heard)
        heard.began = self._time()

    def _write_sum(self, heard: _Heard) -> None:
        if heard.sum is None:
            return
        event_loop().sweeper.forget(heard)
        said, heard.sum = heard.sum.fields(), None
        seconds = round(self._time() - heard.began, 3)
        self._audit.write("summed_up", vm=heard.vm, **said, seconds=seconds)
