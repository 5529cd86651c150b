"""Making a discovery's looks, and making those again that failed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from pedos_host.again import Again
from pedos_host.threads import to_thread

from pedos_agent.inventory.found import Found, unseen
from pedos_agent.system.reading import is_gone, is_starved, words

log = logging.getLogger(__name__)


class Looking:
    """The looks of one discovery. `deliver` takes what one found, `failed` why there was none.

    A look that failed says nothing of what is there, so what was found before stays.
    """

    def __init__(
        self, deliver: Callable[[list[Found]], None], failed: Callable[[str], None]
    ) -> None:
        self._deliver = deliver
        self._failed = failed
        self._again = Again()

    async def look(self, scan: Callable[[], list[Found]]) -> float:
        """Look once; returns the seconds after which to look again although nothing happened.

        In a thread: to learn a device node's size may take its driver seconds.
        """
        try:
            found = await to_thread(scan)
        except (OSError, MemoryError) as error:
            self._failed(words(error))
            return self._again.after_failure()
        except Exception as error:
            # A mistake of this program must not end what is lent.
            log.exception("a look at the devices failed unexpectedly")
            self._failed(f"unexpected {type(error).__name__}")
            return self._again.after_failure()
        self._deliver(found)
        if any(item.unseen is not None for item in found):
            return self._again.after_failure()
        return self._again.over()


class Untold(dict[str, str]):
    """The devices, by their names, of which a look could not tell something, and why.

    An error at one device says nothing of the others. Only what this process lacks is an error of
    the whole look.
    """

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Within, this device is looked at. What is gone meanwhile is not untold."""
        try:
            yield
        except OSError as error:
            if is_starved(error):
                raise
            if not is_gone(error):
                self.setdefault(name, words(error))


def seen(device_class: str, device: str, look: Callable[[], Found | None]) -> Found | None:
    """What `look` finds at one device: None if it is gone, `unseen` if it cannot be told."""
    untold = Untold()
    with untold.at(device):
        return look()
    return unseen(device_class, device, untold[device]) if untold else None
