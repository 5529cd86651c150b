"""Runs a discovery's looks, and repeats those that failed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from pedos_host.backoff import Backoff
from pedos_host.threads import to_thread

from pedos_agent.inventory.local_device import LocalDevice, unseen
from pedos_agent.system.reading import is_gone, is_starved, words

log = logging.getLogger(__name__)


class Looking:
    """The looks of one discovery. `deliver` takes the result of one, `failed` the reason for none.

    A failed look says nothing of what exists, so the previous result stays.
    """

    def __init__(
        self, deliver: Callable[[list[LocalDevice]], None], failed: Callable[[str], None]
    ) -> None:
        self._deliver = deliver
        self._failed = failed
        self._backoff = Backoff()

    async def look(self, scan: Callable[[], list[LocalDevice]]) -> float:
        """Look once; returns the seconds after which to look again even without an event.

        In a thread: a device node's driver may take seconds to tell its size.
        """
        try:
            found = await to_thread(scan)
        except (OSError, MemoryError) as error:
            self._failed(words(error))
            return self._backoff.after_failure()
        except Exception as error:
            # A bug of this program must not end what is lent.
            log.exception("a look at the devices failed unexpectedly")
            self._failed(f"unexpected {type(error).__name__}")
            return self._backoff.after_failure()
        self._deliver(found)
        if any(item.unseen is not None for item in found):
            return self._backoff.after_failure()
        return self._backoff.over()


class Untold(dict[str, str]):
    """The devices, by their names, of which a look could not tell something, and why.

    An error of one device says nothing of the others. Only a lack of this process is an error of
    the whole look.
    """

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Within, this device is looked at. A device that disappears meanwhile is not untold."""
        try:
            yield
        except OSError as error:
            if is_starved(error):
                raise
            if not is_gone(error):
                self.setdefault(name, words(error))


def seen(
    device_class: str, device: str, look: Callable[[], LocalDevice | None]
) -> LocalDevice | None:
    """The result of `look` for one device: None if it is gone, `unseen` if it fails."""
    untold = Untold()
    with untold.at(device):
        return look()
    return unseen(device_class, device, untold[device]) if untold else None
