"""A PCI device between its driver in dom0 and pciback: taken from the one, given back to the other.

xl does both, and may be interrupted half-way. So what it came to is read from the kernel.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from pedos_host import pci_use
from pedos_host.in_time import in_time
from pedos_host.threads import NoThreadError

from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.xen import pci_rules, pci_sysfs
from pedos_dom0.drivers.xen.pci_sysfs import PCIBACK
from pedos_dom0.tasks.disk import NO_THREAD_SECONDS, in_thread, start_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import TypeVar

    from outcome import Outcome

    from pedos_dom0.drivers.xen.pci_sysfs import Function
    from pedos_dom0.drivers.xen.xl import Xl

    T = TypeVar("T")

logger = logging.getLogger(__name__)

# These ask the kernel or the hypervisor; a driver that lets go of a device with disks takes 4 s.
ASSIGNABLE_SECONDS: Final = 20.0
# A reset is done in some 100 ms, by a bus in a second; a device that is not back after this has
# failed it. Looks at sysfs take milliseconds.
RESET_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 5.0
# A disk that nothing was written to is closed in microseconds. One whose controller does not answer
# may take for ever, and all PCI devices wait for their turn.
CLOSE_SECONDS: Final = 5.0

# What no thread closes yet. Python would close it, and wait in the event loop, as soon as nothing
# refers to it; that includes a task that the end of the service cancels.
_to_close: Final[set[Callable[[], None]]] = set()


class Dom0Side:
    """What dom0 does with its PCI devices; one task at a time has it do anything."""

    def __init__(
        self, xl: Xl, sys_root: Path, dev_root: Path, is_wanted: Callable[[str], bool]
    ) -> None:
        """`is_wanted` tells of an address whether a VM has the device there, or is about to get it;
        DriverError."""
        self._xl = xl
        self._sys = sys_root
        self._dev = dev_root
        self._is_wanted = is_wanted

    async def take(self, function: Function, name: str, *, is_strict: bool) -> None:
        """Takes it from dom0's driver, unless pciback has it, and resets it before that.
        DriverError if it is not the same device afterwards: a card that can be changed while the
        machine runs has had seconds for that."""
        what = f"{name} could not be taken from dom0"
        async with self.unused(function, name):
            if is_strict:
                try:
                    await ask_kernel(
                        f"reset {function.address}",
                        partial(pci_sysfs.reset, self._sys, function.address),
                        seconds=RESET_SECONDS,
                    )
                except DriverError as error:
                    raise pci_rules.no_reset(name, str(error)) from error
            if function.driver == PCIBACK:
                await self._check_same(function, name)
                return
            words = ("pci-assignable-add", function.address)
            try:
                await self._xl.run(*words, seconds=ASSIGNABLE_SECONDS, what=what)
                driver = await self._driver(function.address)
                if driver != PCIBACK:
                    raise DriverError(
                        f"{what}: {driver or 'no driver'} has it and not pciback",
                        hint="modprobe xen-pciback, and look at `dmesg`",
                    )
                await self._check_same(function, name)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self.put_back(
                        function.address, name, if_none_has=function.driver is not None
                    )
                raise

    async def _check_same(self, function: Function, name: str) -> None:
        """DriverError unless pciback has that device."""
        now = await ask_kernel(name, partial(pci_sysfs.look_at, self._sys, function.address))
        if now is None or now.id != function.id:
            raise DriverError(f"{name} is not there any more", code="not_found")
        pci_rules.check_identity(now, name, function.identity)
        if now.driver != PCIBACK:
            raise DriverError(f"{name} is with {now.driver or 'no driver'} by now, not pciback")

    @asynccontextmanager
    async def unused(self, function: Function, name: str) -> AsyncIterator[None]:
        """Within, nothing in dom0 begins to use it; DriverError(busy) if something does."""
        if function.driver == PCIBACK:
            yield
            return
        holding = pci_use.held(str(self._sys), str(self._dev), function.address)
        what = f"what uses {function.address} cannot be told"

        def let_go(_held: object) -> None:
            holding.__exit__(None, None, None)

        try:
            await ask_kernel(what, holding.__enter__, late=let_go)
        except pci_use.InUse as used:
            raise DriverError(
                f"{name} is in use in dom0: {used}",
                code="busy",
                hint="unmount its disks and take its interfaces down, if dom0 can do without it",
            ) from used
        try:
            yield
        finally:
            await _close(partial(let_go, None), f"the disks of {function.address}")

    async def put_back(self, address: str, name: str, *, if_none_has: bool) -> None:
        """Gives it to its driver in dom0, unless a VM has it, or is about to. The end of an
        attachment does not depend on that: pciback keeps it otherwise. `if_none_has`: also if no
        driver has it, as after an xl that was interrupted between dom0's and pciback."""
        what = f"{name} could not be given back to dom0, and stays with pciback"
        try:
            is_wanted = self._is_wanted(address)
            driver = await self._driver(address)
            if is_wanted or not (driver == PCIBACK or (driver is None and if_none_has)):
                return
            failed: DriverError | None = None
            if driver == PCIBACK:
                words = ("pci-assignable-remove", "-r", address)
                try:
                    await self._xl.run(*words, seconds=ASSIGNABLE_SECONDS, what=what)
                except DriverError as error:
                    failed = error
            # xl knows the driver only of a device that it has taken from one; and one that fails
            # half-way leaves it to none.
            driver = await self._driver(address)
            if driver is None:
                await ask_kernel(what, partial(pci_sysfs.probe, self._sys, address))
            elif failed is not None and driver == PCIBACK:
                raise failed
        except DriverError as error:
            logger.warning("%s", error)

    async def tell_where(self, address: str, name: str, *, is_unclear: bool) -> None:
        """An xl that was killed, perhaps with the last service, may have left it between dom0's
        driver and pciback, or with pciback though dom0 had it before. What an administrator has
        left so looks the same: so it is only told."""
        try:
            is_there = await ask_kernel(name, partial(pci_sysfs.look_at, self._sys, address))
        except DriverError as error:
            logger.warning("%s", error)
            return
        if is_there is None:
            return
        if is_there.driver is None:
            text = "%s has no driver, neither one of dom0 nor pciback; to give it one of dom0: %s"
            logger.warning(text, name, f"echo {address} > /sys/bus/pci/drivers_probe")
        elif is_there.driver == PCIBACK and is_unclear:
            text = "%s stays with pciback, as work on it was interrupted; to give it back to dom0, "
            text += "once no VM can have it: %s"
            logger.warning(text, name, give_back(address))

    async def _driver(self, address: str) -> str | None:
        look = partial(pci_sysfs.driver_of, self._sys, address)
        return await ask_kernel(f"the driver of {address}", look)


async def ask_kernel(
    what: str,
    ask: Callable[[], T],
    *,
    seconds: float = LOOK_SECONDS,
    late: Callable[[T], object] = lambda _result: None,
) -> T:
    """Asks in a thread; `late` gets a result that is not awaited any more. DriverError."""
    try:
        return await in_thread(partial(in_time, what, ask, seconds=seconds, late=late))
    except OSError as error:
        raise DriverError(f"{what}: {error.strerror or error}") from error


async def _close(close: Callable[[], None], what: str) -> None:
    """Has a thread of its own close what is open, to its end, and waits CLOSE_SECONDS for it, also
    if this is cancelled. in_time would not close a second thing of that name while the first one
    hangs, nor a seventeenth."""
    closed = trio.Event()

    def then(result: Outcome[None]) -> None:
        closed.set()
        try:
            result.unwrap()
        except Exception:  # they are closed all the same
            logger.exception("%s were closed with an error", what)

    _to_close.add(close)
    # If there is no thread for it in that time, it keeps trying: nobody else closes them.
    trio.lowlevel.spawn_system_task(_start_closing, close, then, name=f"close {what}")
    with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
        await closed.wait()
    if not closed.is_set():
        logger.warning("%s are not closed after %g s", what, CLOSE_SECONDS)


async def _start_closing(close: Callable[[], None], then: Callable[[Outcome[None]], None]) -> None:
    while True:
        try:
            start_in_thread(close, then)
            break
        except NoThreadError:
            await trio.sleep(NO_THREAD_SECONDS)
    _to_close.discard(close)


def give_back(address: str) -> str:
    """The command with which dom0's driver gets it back."""
    return f"xl pci-assignable-remove -r {address}"
