"""Lines about calls of services that a VM may make: whole stories first, then sums that name them.

A VM may call as often as it likes, and three lines for each call would push out of the log what
others did (see allowance.py). So a call has all its lines or none: beyond CALL_LINES within
CALL_INTERVAL, or without lines in the VM's allowance, it is a part of a sum (call_sum.py), which is
written when the interval is over. A service in a VM that was not called in this interval yet has
its lines all the same, so that no flood of one service hides another one's first call.

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
# VM. A VM that uses them all writes as many lines a day again as its allowance has.
FIRSTS_MAX = 8
# Services in VMs that are known to be called within an interval; any further one is a first one.
PAIRS_MAX = 64
# Calls of which it is known whether they have lines: some 128 of each VM run or wait.
KNOWN_MAX = 8192


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
        # By request, whether its lines are written.
        self._is_whole: dict[str, bool] = {}

    def counts(
        self,
        event: str,
        called: Called,
        *,
        of: str,
        throttled: bool,
        request: str,
        call_id: str | None = None,
        outcome: str | None = None,
    ) -> bool:
        """Whether a line is counted instead of written: if not, `write` follows. `call_id` and
        `outcome` come once for each call, if they do."""
        if not throttled:
            return False
        now = self._time()
        heard = self._heard.get(of)
        if heard is None:
            heard = self._heard[of] = _Heard(of, now, self._interval_over)
        elif now - heard.began >= CALL_INTERVAL:
            self._interval_over(heard)
        is_whole = self._is_whole.get(request)
        is_new = is_whole is None
        if is_whole is None:
            is_whole = self._takes(heard, called, now)
            if len(self._is_whole) >= KNOWN_MAX:
                del self._is_whole[next(iter(self._is_whole))]
            self._is_whole[request] = is_whole
        if is_whole:
            self._allowance.spend(of, now)
            return False
        if heard.sum is None:
            heard.sum = CallSum()
            heard.deadline = heard.began + CALL_INTERVAL
            event_loop().sweeper.watch(heard)
        heard.sum.add(event, called, request, is_new=is_new, call_id=call_id, outcome=outcome)
        return True

    def forget(self, request: str) -> None:
        """The call is over, and has no further line. Fine if there was none."""
        self._is_whole.pop(request, None)

    def write(self, event: str, **fields: object) -> None:
        """One line that `counts` does not count."""
        self._audit.write(event, **fields)

    def flush_all(self) -> None:
        """The service ends: no sum is lost."""
        for heard in self._heard.values():
            self._write_sum(heard)

    def _takes(self, heard: _Heard, called: Called, now: float) -> bool:
        """Whether a call has its lines."""
        pair = (called.service, called.target)
        is_first = pair not in heard.pairs
        if is_first and len(heard.pairs) < PAIRS_MAX:
            heard.pairs.add(pair)
        if heard.lines < self._after and not self._allowance.wait(heard.vm, now):
            heard.lines += LINES_PER_CALL
            return True
        if not is_first or heard.firsts >= FIRSTS_MAX:
            return False
        heard.firsts += 1
        return True

    def _interval_over(self, heard: _Heard) -> None:
        # After an interval with a sum, the VM stays throttled: only first calls are written.
        heard.lines = 0 if heard.sum is None else self._after
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
