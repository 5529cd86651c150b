"""Lines that a VM can cause as often as it likes, in audit and log: the first whole, then a count.

A VM that repeats a denied request, or reconnects, some ten times a second would otherwise push
everything else out of the log (see the rotation in log.py). Beyond THROTTLE_AFTER lines its lines
are suppressed and summed up: one line per interval, for as long as it continues. The sum is written
before the next line about that VM that is not throttled, and when the service ends. The programs of
one user of dom0's desktop count as one VM.

Lines about what was done are never left out. Whole lines are taken from an allowance of the author
(allowance.py). Throttled lines have one of their own, and are summed up without it, so that what is
refused keeps nobody from what is allowed. Without the one for what was done, `wait` says for how
long the author may give nothing to a VM.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from pedos_dom0.audit.allowance import Allowances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pedos_dom0.audit.log import AuditWriter

logger = logging.getLogger(__name__)

# Lines of one VM that are written before the rest is counted: a user in the VM who tries a dozen
# devices is recorded in full (a refused attach is two lines).
THROTTLE_AFTER = 32
# Seconds between two sums of one VM, and of quiet after which its lines are written again: 1,440
# sums a day is the most that a VM can cause.
THROTTLE_INTERVAL = 60.0


@attrs.define
class _Heard:
    """What one VM did since `began`."""

    began: float
    whole: int = 0
    unlogged: int = 0
    suppressed: Counter[str] = attrs.field(factory=Counter)
    first: object = None
    last: object = None


class AuditThrottle:
    """Writes VMs' lines into the audit log, and messages about them into the service's log.

    One of these serves all VMs; it keeps one entry per VM.
    """

    def __init__(
        self, audit: AuditWriter, time: Callable[[], float], after: int = THROTTLE_AFTER
    ) -> None:
        """`time` is the clock, in seconds; `after` the lines of one VM that are written before the
        rest is counted."""
        self._audit = audit
        self._time = time
        self._after = after
        self._heard: dict[str, _Heard] = {}
        self._done = Allowances()
        self._throttled = Allowances()
        # By request that is under way.
        self._authors: dict[object, str] = {}

    @contextmanager
    def paid_by(self, author: str, request: str, *, throttled: bool) -> Iterator[None]:
        """Within, the lines about what was done for the request are taken from the allowance of an
        author that is `throttled`."""
        if not throttled:
            yield
            return
        self._authors[request] = author
        try:
            yield
        finally:
            del self._authors[request]

    def wait(self, author: str) -> float:
        """Seconds until the author may have a line about what was done; 0 if it may now."""
        return self._done.wait(author, self._time())

    def pays(self, author: str, *, throttled: bool) -> bool:
        """Takes a line about what was done from the allowance of an author that is `throttled`;
        False if it has none."""
        if throttled:
            if self.wait(author):
                return False
            self._done.spend(author, self._time())
        return True

    def write_whole(self, event: str, **fields: object) -> None:
        """One line about what was done, whoever caused it, which is never left out."""
        self._audit.write(event, **fields)
        if (author := self._authors.get(fields.get("request"))) is not None:
            self._done.spend(author, self._time())

    def write(
        self, event: str, *, of: str, throttled: bool, say: str | None = None, **fields: object
    ) -> None:
        """One line that the VM `of` caused. If it is `throttled` it may be counted instead.

        The sum has the number of lines of each event, and the first and last request's id. `say` is
        a sentence for the service's log, which is counted with the line.
        """
        is_said, request = say is not None, fields.get("request")
        if not self.counts(event, of=of, throttled=throttled, request=request, is_said=is_said):
            self.write_uncounted(event, of=of, throttled=throttled, say=say, **fields)

    def counts(
        self, event: str, *, of: str, throttled: bool, request: object, is_said: bool = False
    ) -> bool:
        """Whether a line is counted instead of written. If not, `write_uncounted` follows. These
        two are `write`: where there are many lines, those that are counted need not be made."""
        if not throttled:
            return False
        now = self._time()
        heard = self._heard.get(of)
        if heard is None:
            heard = self._heard[of] = _Heard(now)
        if now - heard.began >= THROTTLE_INTERVAL:
            # After an interval with a sum, the VM stays throttled.
            heard.whole = self._after if heard.suppressed else 0
            self.flush(of)
            heard.began = now
        if heard.whole < self._after and not self._throttled.wait(of, now):
            heard.whole += 1
            self._throttled.spend(of, now)
            return False
        heard.unlogged += is_said
        if not heard.suppressed:
            heard.first = request
        heard.last = request
        heard.suppressed[event] += 1
        return True

    def write_uncounted(
        self, event: str, *, of: str, throttled: bool, say: str | None = None, **fields: object
    ) -> None:
        """As `write`, for a line that `counts` does not count."""
        if throttled:
            self._audit.write(event, **fields)
        else:
            self.flush(of)
            self.write_whole(event, **fields)
        if say is not None:
            logger.warning("%s", say)

    def flush(self, vm: str) -> None:
        """Writes the sum of a VM's counted lines, if there are any."""
        heard = self._heard.get(vm)
        if heard is None or not heard.suppressed:
            return
        suppressed, heard.suppressed = heard.suppressed, Counter()
        unlogged, heard.unlogged = heard.unlogged, 0
        if unlogged:
            logger.warning(
                "%s was denied %d times more; the audit log has the first (%s) and the last (%s)",
                vm,
                unlogged,
                heard.first,
                heard.last,
            )
        self._audit.write(
            "summed_up",
            vm=vm,
            events=dict(suppressed),
            first_request=heard.first,
            last_request=heard.last,
            seconds=round(self._time() - heard.began, 3),
        )

    def flush_all(self) -> None:
        """The service ends: no count is lost."""
        for vm in list(self._heard):
            self.flush(vm)
