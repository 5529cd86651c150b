"""The agent of a VM that is restored from a file or migrated from another host.

`xl save` and `xl restore` end a domain and make another one, with another number, in which this
process continues. Its channels were the old domain's: no one shares their memory now, and dom0
waits for an agent under the new number. No channel reports that, because its peer lives. So the
agent ends, and is restarted. A VM that is only paused, or saved and then resumed, keeps its number.
"""

from __future__ import annotations

import errno
import logging

import trio
from pedos_host.backoff import BACKOFF_MAX, Backoff
from pedos_vchan import xen

from pedos_agent.system.reading import words

log = logging.getLogger(__name__)


async def end_when_restored(domid: int) -> None:
    """Raises OSError (ESTALE) if the domain in which this runs is not `domid` any more."""
    backoff = Backoff()
    while True:
        began = trio.current_time()
        try:
            now = await _another_number(domid)
        except OSError as error:
            if trio.current_time() - began > BACKOFF_MAX:  # it worked before
                backoff.over()
            wait = backoff.after_failure()
            log.warning("whether this VM is restored is asked again later: %s", words(error))
            await trio.sleep(wait)
        else:
            raise OSError(
                errno.ESTALE,
                f"this VM was restored, as domain {now}, and was domain {domid} before: "
                "its agent begins anew",
            )


async def _another_number(domid: int) -> str:
    """Returns the new number when this domain's number has changed.

    The kernel sets all watches again in the new domain, and a watch fires when it is set.
    """
    with xen.Store() as store:
        store.watch("domid")
        while True:
            await store.changed()
            now = store.read("domid")
            if now is not None and now != str(domid):
                return now
