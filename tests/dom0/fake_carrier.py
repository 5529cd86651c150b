"""A hypervisor that carries devices, for tests of dom0's service."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest
import trio
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.carrier import GivenLive
from pedos_dom0.tables.leases import Lease
from pedos_dom0.tables.registry import DeviceKey
from pedos_protocol.errors import CallError

from tests.dom0.fakes import FakeDriver


class FakeCarrier(GivenLive):
    """The carrier of block devices, which are attached because a test says so; with the driver's
    other properties."""

    lack = None
    by_hypervisor = True
    before_boot = True
    starts_paused = True
    boot_timeout = 60.0

    def __init__(self) -> None:
        self.attached: dict[str, Lease] = {}
        self.did: list[str] = []
        self.adopted: list[Lease] = []
        self.refuse_attach: DriverError | None = None
        # A target's reply to a detach without force, and to a forced one.
        self.refuse_detach: DriverError | None = None
        self.refuse_force: DriverError | None = None
        self.refuse_resume: DriverError | None = None
        # Why it could not be given now.
        self.unfit: str | None = None
        # The number of the disk that the source's backend has open; an error if xenstore fails.
        self.serves: str | None | DriverError = None
        # By VM, the names of its own disks, or why they are not known.
        self.own: dict[str, frozenset[str] | DriverError] = {}

    def adopt(self, leases: Iterable[Lease]) -> None:
        self.adopted.extend(leases)

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> str:
        free = next(name for name in ("xvdi", "xvdj", "xvdk") if name not in taken)
        return asked or free

    async def why_unfit(self, key: DeviceKey, vm: str, options: Mapping[str, str]) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.unfit

    async def attach(self, lease: Lease) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append(f"attach {lease.frontend}")
        if self.refuse_attach is not None:
            raise self.refuse_attach
        self.attached[lease.attachment] = lease

    async def detach(self, lease: Lease, *, force: bool) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append(f"detach {lease.frontend}{' by force' if force else ''}")
        if self.refuse_detach is not None and not force:
            raise self.refuse_detach
        if self.refuse_force is not None:
            raise self.refuse_force
        self.attached.pop(lease.attachment, None)

    def number(self, lease: Lease) -> str | None:
        if isinstance(self.serves, DriverError):
            raise self.serves
        return self.serves

    async def own_names(self, vm: str) -> Collection[str]:
        await trio.lowlevel.checkpoint()
        own = self.own.get(vm, frozenset())
        if isinstance(own, DriverError):
            raise own
        return own

    def is_attached(self, lease: Lease) -> bool:
        return lease.attachment in self.attached

    async def resume(self, name: str, domid: int) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append(f"resume {name}")
        if self.refuse_resume is not None:
            raise self.refuse_resume


def let_carry(carrier: FakeCarrier, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every world of this test, the driver carries block devices like this."""
    monkeypatch.setattr(FakeDriver, "carriers", {**FakeDriver.carriers, "block": carrier})
    for name in ("starts_paused", "boot_timeout", "resume"):
        monkeypatch.setattr(FakeDriver, name, getattr(carrier, name))


async def mounted(_params: Any) -> None:
    """An agent's answer to import.stop while its VM uses the device."""
    raise CallError("busy", "xvdi is mounted at /mnt")
