"""The interface between the agent and its device classes: what a class has to do, and what it gets.

`DeviceClass` is a class whose devices can only be listed, as described by a file in a folder. A
class overrides what it can do beyond that; no other part of the agent knows how.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import attrs
import trio
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.frozen import frozen
from pedos_vchan.transport import Transport

from pedos_agent.device_classes.described import described_device
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.pinned import Pinner
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.settings import Settings
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import ROOTS, Roots

Deliver = Callable[[list[LocalDevice]], None]
Failed = Callable[[str], None]


@attrs.define(eq=False)
class Host:
    """The agent that a class is part of.

    `transport` makes the channels for data that the agents carry. `rescan` triggers a new look: it
    is bumped when something may differ from discovery's last look, because devices are lent or
    borrowed, or because discovery has heard of an event. `heard` is bumped when somebody begins to
    listen to what is lent, or nobody does any more.
    """

    settings: Settings
    transport: Transport = attrs.field(init=False)
    roots: Roots = ROOTS
    rescan: Revision = attrs.field(factory=Revision)
    heard: Revision = attrs.field(factory=Revision)

    @transport.default
    def _transport(self) -> Transport:
        return self.settings.transport()


@frozen
class Carried:
    """What the agent itself does with the devices of a class."""

    lent: Collection[tuple[str, int]] = ()  # device id and domain
    borrowed: Collection[str] = ()  # names in this VM


def nothing_carried(_device_class: str) -> Carried:
    """For an agent that neither lends nor borrows."""
    return Carried()


class Borrowing(Protocol):
    """A device of another domain in this VM."""

    @property
    def name(self) -> str | None:
        """Its name here, for dom0; None if its class has no names."""
        ...

    async def run(self, lifetime: Lifetime) -> None:
        """Have it here until an event ends `lifetime`, which is told when it is ready; leave
        nothing behind. CallError, OSError."""
        ...

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        """Why `give_back` would refuse now, as far as visible; None if it would not."""
        ...

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        """Make every user here release it, so that its end destroys nothing. `still_asked` is
        awaited right before something changes, and cancelled if this is not wanted any more.
        CallError(busy)."""
        ...


class Carrier(Protocol):
    """How the devices of a class get out of this VM and into it, under its hypervisor."""

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        """Lend `found` until an event ends `lifetime`, which is told when it is ready; leave
        nothing behind. CallError, OSError."""
        ...

    def number(self, found: LocalDevice) -> str | None:
        """The number of the block device that stands for it here; see ExportStarted."""
        ...

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        """Borrow a device, under a name that is not among `taken`. CallError, OSError."""
        ...

    def of_predecessor(self, name: str) -> Borrowing | None:
        """What a predecessor of this agent has borrowed as `name`, if it outlives an agent."""
        ...

    async def clean_leftovers(self) -> None:
        """Remove what a killed predecessor left, if it is useless without the predecessor."""
        ...


class Uses(Protocol):
    """Uses of the devices in a folder by others, as far as the folder has no events for them."""

    async def follow(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen for changes for ever."""
        ...

    def begin(self) -> None:
        """A look begins: it may miss changes from after this."""
        ...

    def matter_to(self, found: list[LocalDevice]) -> None:
        """The result of a look."""
        ...

    def waits(self) -> list[Callable[[], Awaitable[object]]]:
        """Each ends at a relevant change of one kind."""
        ...


class DeviceClass:
    """A class whose devices can be listed."""

    name: str
    #: The kernel's name for events of its devices, where a machine's own are looked at.
    subsystem: str | None = None

    # Discovery

    def watch(self, host: Host) -> Callable[..., Awaitable[Any]] | None:
        """A discovery of its own: `watch(deliver, carried, failed=, task_status=)`. None if those
        for all classes find its devices."""
        return None

    def on_machine(
        self, sys_root: Path, proc_root: Path, names: HardwareNames
    ) -> list[LocalDevice]:
        """The machine's own devices, if `subsystem` is set. A device that cannot be looked at is
        `unseen`; OSError if that holds for all of them."""
        return []

    def in_folder(self, path: str, device_id: str, pin: Pinner) -> LocalDevice | None:
        """In local mode, the device of a file in its folder; None if it is none. OSError."""
        return described_device(path, self.name, device_id, pin)

    def complete(
        self, found: list[LocalDevice], carried: Carried, roots: Roots
    ) -> list[LocalDevice]:
        """In local mode, its devices with the properties that depend on all of them. OSError if
        these cannot be determined for any."""
        return found

    def is_borrowed(self, path: Path) -> bool:
        """In local mode, whether that is a device that a VM has borrowed; asks the kernel alone."""
        return False

    def uses(self) -> Uses | None:
        """In local mode, the other sources of changes; None if there are none."""
        return None

    # Lending and borrowing

    def carrier(self, host: Host) -> Carrier | None:
        """The carrier that lends and borrows its devices; None if they can only be listed."""
        return None
