"""Before everything stops: reports the borrowed devices that VMs use.

This is the question that `qvm-shutdown` asks. A person who presses Ctrl-C sees the answer, and
everything stops when nothing is in use any more, or with the next Ctrl-C. A signal that does not
come from a person gets the message, too, but no wait.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.vm_messages import VmsUsed, parse_result

from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.local.bringup import CannotComeUp, service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pedos_dom0.local.layout import Layout

logger = logging.getLogger(__name__)

# For dom0's service, which itself waits this long for the agents.
ASK_TIMEOUT: Final = STOP_TIMEOUT + 5.0
# The sender of SIGTERM may send SIGKILL some seconds later, and much is to be done by then.
HURRIED_TIMEOUT: Final = 2.0
# Between two questions. A person unmounts, and looks at the terminal.
RETRY_SECONDS: Final = 1.0


async def until_unused(
    layout: Layout, next_signal: Callable[[], Awaitable[object]], *, hurried: bool
) -> None:
    """Returns when nothing is in use, or when a signal comes. If the answer fails for a while,
    returns too, unless a person has been told of a use: then it waits for the end of that."""
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            with trio.move_on_after(HURRIED_TIMEOUT if hurried else ASK_TIMEOUT) as patience:
                await _look(layout, patience, hurried=hurried)
            if patience.cancelled_caught:
                logger.warning("dom0's service does not say what is in use")
            nursery.cancel_scope.cancel()

        nursery.start_soon(look)
        await next_signal()
        nursery.cancel_scope.cancel()


async def _look(layout: Layout, patience: trio.CancelScope, *, hurried: bool) -> None:
    said: Sequence[str] = ()
    lack = ""
    while True:
        can_tell = True
        try:
            used = await _used(layout)
            lack = ""  # another failure is reported again, also in the same words
        except (CallError, CannotComeUp, ProtocolError) as error:
            if str(error) != lack:
                lack = str(error)
                logger.warning("what is in use cannot be told: %s", lack)
            used, can_tell = said, False  # the service may be restarting
        if used and used != said:
            said = used
            for line in used:
                logger.warning("%s", line)
            logger.warning(
                "%s",
                "this is taken from them"
                if hurried
                else "going down when nothing is in use any more; Ctrl-C takes it all the same",
            )
        if hurried or (can_tell and not used):
            return
        if used:
            patience.deadline = math.inf  # as reported
        await trio.sleep(RETRY_SECONDS)


async def _used(layout: Layout) -> Sequence[str]:
    async with service(layout) as dom0:
        answer: VmsUsed = parse_result(
            "vm.used", await dom0.call("vm.used", {}, timeout=ASK_TIMEOUT)
        )
        return answer.used
