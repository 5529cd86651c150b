"""PCI devices on Xen: pciback keeps them for VMs, xl gives them, and xenstore tells who has which.

A domain gets its devices when it is made (`xl create`): a new one, paused, has no PCI frontend yet.
So a start has three steps: `prepare` makes a device ready, the driver makes the domain with what
`creation_words` says, and `attach` looks whether the domain has it. A device for a VM that runs is
made ready and given by `attach` alone, if the VM can take it.

Everything that xl says wrongly or not at all is found out before xl is asked (pci_rules, pciback,
`pedos_host.pci_use`). After the end of a VM its devices stay with pciback: what a VM may have
reprogrammed does not come back to dom0 unless `give-back=yes` (pci_dom0).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from pedos_dom0.drivers.base import DOM0_NAME, NO_DOMAIN, DriverError
from pedos_dom0.drivers.xen import pci_rules, pci_sysfs, pciback
from pedos_dom0.drivers.xen.pci_dom0 import LOOK_SECONDS, Dom0Side, ask_kernel, give_back
from pedos_dom0.drivers.xen.pci_sysfs import PCIBACK
from pedos_dom0.drivers.xen.pci_unclear import Unclear
from pedos_dom0.drivers.xen.xenstore import DOMAINS, wait_for
from pedos_dom0.drivers.xen.xl import Unfinished, can_pass_through
from pedos_dom0.errors import only_at_start
from pedos_dom0.tables.leases import ATTACHED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pedos_dom0.drivers.xen.pci_sysfs import Function, Picture
    from pedos_dom0.drivers.xen.pciback import Given
    from pedos_dom0.drivers.xen.xenstore import Reader, Store
    from pedos_dom0.drivers.xen.xl import Xl
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey

# A question to the hypervisor: milliseconds, unless dom0 is busy.
QUICK_SECONDS: Final = 15.0
# xl itself waits 10 s for the two ends; the driver in the VM may wait twice for its controller,
# 5 s each time (11 s were seen).
ATTACH_SECONDS: Final = 30.0
DETACH_SECONDS: Final = 30.0
# What each device adds to the making of a domain and to its end, where xl takes the devices away
# one by one, and waits up to 10 s for each.
CREATE_SECONDS_EACH: Final = 10.0
DESTROY_SECONDS_EACH: Final = 15.0


@attrs.define(eq=False)
class _Mine:
    """What this service knows of a device that it has given, or is about to give."""

    lease: Lease
    address: str
    # The driver that had it in dom0, if this attach has taken it from one and no VM has had it.
    had_driver: str | None = None

    @property
    def words(self) -> str:
        """What xl is told of it: a PCI_SPEC_STRING of xl-pci-configuration(5)."""
        is_permissive = self.lease.options.get("permissive") == "yes"
        return f"{self.address},permissive=1" if is_permissive else self.address


class XenPci:
    """The carrier of PCI devices of dom0."""

    device_class = "pci"
    lack = None
    by_hypervisor = True
    before_boot = True
    at_creation = True
    outlives_agents = True

    def __init__(
        self,
        xl: Xl,
        store: Callable[[], Reader],
        open_store: Callable[[], Store],
        has_ended: Callable[[int], bool],
        sys_root: Path,
        dev_root: Path,
    ) -> None:
        """`store` is the permanent connection, `open_store` makes one to wait with; `has_ended`
        tells of a domain that it will not run any more, if it exists at all."""
        self._xl = xl
        self._store = store
        self._open_store = open_store
        self._has_ended = has_ended
        self._sys = sys_root
        self._dom0 = Dom0Side(xl, sys_root, dev_root, self._is_wanted)
        self._mine: dict[str, _Mine] = {}  # by attachment
        self._unclear = Unclear(store)
        self._has_iommu = False
        # A check holds until the device is given: no other check may come between.
        self._turn = trio.Lock()

    def adopt(self, leases: Iterable[Lease]) -> None:
        """See Carrier. What has no lease here stays where it is: an administrator gave it."""
        for lease in leases:
            if lease.state != ATTACHED:
                self._unclear.note(lease)  # its xl ended with the last service, if there was one
            try:
                address = self._address(lease)
            except DriverError:  # it could not be looked at: that is done again when it matters
                continue
            if address is not None:
                self._mine[lease.attachment] = _Mine(lease, address)

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> None:
        """See Carrier. The kernel chooses it: see `given_name`."""

    async def own_names(self, vm: str) -> Collection[str]:
        """See Carrier."""
        await trio.lowlevel.checkpoint()
        return ()

    def number(self, lease: Lease) -> None:
        """See Carrier. It is no disk."""

    def is_attached(self, lease: Lease) -> bool:
        """See Carrier. A domain that has ended has it until nothing is left of the domain."""
        return self._given(lease) is not None

    def given_name(self, lease: Lease) -> str | None:
        """See Carrier."""
        given = self._given(lease)
        return None if given is None else given.name_there

    def can_give_live(self, domid: int) -> bool:
        """See Carrier."""
        with pciback.asking():
            return pciback.takes_more(self._store(), domid)

    def count(self, domid: int) -> int:
        """How many devices a domain has, from whomever."""
        with pciback.asking():
            return len(pciback.given_to(self._store(), domid))

    def strays(self) -> Mapping[str, str]:
        """See Carrier. The toolstack has given them, also to the next domain of a VM that reboots.
        What is left of domains that have ended has nothing for long."""
        ours = {mine.address for mine in self._mine.values()}
        found = {}
        with pciback.asking():
            store = self._store()
            for each in pciback.given(store):
                if each.address in ours or self._has_ended(each.domid):
                    continue
                called = pci_sysfs.id_of(self._sys, each.address)
                if called is not None:
                    found[called] = pciback.name_of(store, each.domid)
        return found

    def runs(self, domid: int) -> None:
        """A domain is about to run: what it was made with is not what it was."""
        for mine in self._mine.values():
            if mine.lease.vm_domid == domid:
                mine.had_driver = None

    def addresses(self, leases: Iterable[Lease]) -> list[str]:
        """Those of devices that are prepared."""
        return [self._mine[lease.attachment].address for lease in leases]

    def creation_words(self, leases: Iterable[Lease]) -> list[str]:
        """The words of `xl create` that give a new domain devices which are prepared, beside those
        of its configuration."""
        specs = [f'"{self._mine[lease.attachment].words}"' for lease in leases]
        return [f"pci += [ {', '.join(specs)} ]"] if specs else []

    def moving(self, leases: Iterable[Lease]) -> AbstractContextManager[None]:
        """See Unclear."""
        return self._unclear.moving(leases)

    # Before the VM has it

    async def prepare(self, lease: Lease) -> None:
        """See Carrier."""
        async with self._turn:
            await self._make_ready(lease)

    async def attach(self, lease: Lease) -> None:
        """See Carrier. Of a domain that was made with it, looks whether it has it."""
        async with self._turn:
            if not self.is_attached(lease):
                await self._give_live(lease)
            self._mine[lease.attachment].lease = lease
        await self._check_permissive(lease)

    async def why_unfit(self, key: DeviceKey, vm: str, options: Mapping[str, str]) -> str | None:
        """See Carrier. Only a reset is not tried."""
        with trio.move_on_after(LOOK_SECONDS) as waiting:
            await self._turn.acquire()
        if waiting.cancelled_caught:
            return "another PCI device is being given to a VM, and this one was not looked at"
        try:
            function = await self._checked(key, vm, options)
            # It holds the device's disks: who is about to give it would find them in use.
            async with self._dom0.unused(function, str(key)):
                return None
        except DriverError as error:
            return str(error)
        finally:
            self._turn.release()

    async def _make_ready(self, lease: Lease) -> None:
        """pciback has it, and a VM may get it; DriverError, and then it is where it was."""
        function = await self._checked(lease.key, lease.vm, lease.options, lease.identity)
        is_strict = _is_strict(lease.options)
        await self._dom0.take(function, str(lease.key), is_strict=is_strict)
        had_driver = None if function.driver == PCIBACK else function.driver
        self._mine[lease.attachment] = _Mine(lease, function.address, had_driver)

    async def _checked(
        self, key: DeviceKey, vm: str, options: Mapping[str, str], identity: str | None = None
    ) -> Function:
        """The device, if the VM can be given it as far as a look tells; DriverError. `identity` is
        that of the device that was allowed."""
        name = str(key)
        if key.backend != DOM0_NAME:
            raise DriverError(f"{name}: only dom0's own PCI devices can be given to a VM")
        if options.get("read-only") == "yes":
            raise DriverError(
                f"{name}: policy allows it read-only, and no PCI device can be that",
                hint="remove read-only=yes from the rule",
            )
        picture = await ask_kernel("the PCI devices", partial(pci_sysfs.look, self._sys))
        function = picture.called(key.device)
        if function is None:
            raise DriverError(f"{name} is not there any more", code="not_found")
        pci_rules.check_identity(function, name, identity)
        pci_rules.check_kind(function, name)
        self._check_free(function, name)
        pci_rules.check_group(picture, function, name, self._others(picture), vm)
        if _is_strict(options):
            pci_rules.check_reset(function, name)
        await self._check_iommu()
        return function

    def _check_free(self, function: Function, name: str) -> None:
        """DriverError(busy) if a domain has it, or may have it."""
        with pciback.asking():
            store = self._store()
            for each in pciback.given(store):
                if each.address == function.address:
                    holder = pciback.name_of(store, each.domid)
                    raise DriverError(
                        f"{name} is in {holder} (domain {each.domid}), which got it from the "
                        "toolstack and not from here, or has rebooted with it",
                        code="busy",
                        hint=f"xl pci-detach {each.domid} {function.address}, or shut {holder} "
                        "down",
                    )
        if (may_have := self._unclear.left().get(function.id)) is not None:
            raise may_have.refusal(name)

    def _others(self, picture: Picture) -> dict[str, str]:
        """The VMs that have PCI devices, may have them, or are about to, by address."""
        with pciback.asking():
            store = self._store()
            found = {
                each.address: pciback.name_of(store, each.domid) for each in pciback.given(store)
            }
        for mine in self._mine.values():
            found.setdefault(mine.address, mine.lease.vm)
        for each in self._unclear.left().values():
            if (function := picture.called(each.device)) is not None:
                found.setdefault(function.address, each.vm)
        return found

    async def _check_iommu(self) -> None:
        """DriverError if Xen uses no IOMMU. Once it does, it does so until the next boot."""
        if self._has_iommu:
            return
        told = await self._xl.run("info", seconds=QUICK_SECONDS, what="Xen did not say what it can")
        if not can_pass_through(told):
            raise DriverError(
                "Xen uses no IOMMU here, so a VM with a PCI device could read and write all memory",
                hint="enable VT-d or AMD-Vi in the firmware's setup; see `xl dmesg`",
            )
        self._has_iommu = True

    async def _give_live(self, lease: Lease) -> None:
        what = f"{lease.key} could not be attached to {lease.vm}"
        if lease.attachment in self._mine:
            self._unclear.note(lease)
            raise DriverError(f"{what}: xl has made {lease.vm} without it")
        if not self.can_give_live(lease.vm_domid):
            why = only_at_start(lease.key, lease.vm)
            raise DriverError(why.message, hint=str(why.data["hint"]))
        await self._make_ready(lease)
        mine = self._mine[lease.attachment]
        had_driver = mine.had_driver
        self.runs(lease.vm_domid)
        words = ("pci-attach", str(lease.vm_domid), mine.words)
        try:
            with self.moving([lease]):
                await self._xl.run(*words, seconds=ATTACH_SECONDS, what=what)
            if not self.is_attached(lease):
                self._unclear.note(lease)  # the hypervisor may have done what xl says
                raise DriverError(f"{what}: xl says nothing, and {lease.vm} does not have it")
        except DriverError as error:
            is_unclear = lease.attachment in self._unclear
            if had_driver is None or (_comes_back(lease) and not is_unclear):
                raise
            # The VM may have had it for a moment, or has it.
            raise DriverError(
                f"{error}; it stays with pciback, and {had_driver} does not get it back by itself",
                code=error.code,
                hint=give_back(mine.address),
            ) from error

    async def _check_permissive(self, lease: Lease) -> None:
        """DriverError if the VM may not write what it is to be able to write."""
        if lease.options.get("permissive") != "yes":
            return
        listed = await ask_kernel("permissive", partial(pci_sysfs.permissive, self._sys))
        if self._mine[lease.attachment].address not in listed:
            raise DriverError(
                f"permissive=yes did not take effect for {lease.key}: pciback does not list it",
                hint="look at `dmesg` in dom0; a locked-down kernel forbids it",
            )

    # After that

    async def detach(self, lease: Lease, *, force: bool) -> None:
        """See Carrier. From a domain that has ended, the toolstack takes it."""
        what = f"{lease.key} could not be detached from {lease.vm}"
        given = self._given(lease)
        if given is not None:
            self._mine.setdefault(lease.attachment, _Mine(lease, given.address))
            if not self._is_over(lease):
                await self._take_away(lease, given, what, force=force)
            elif not await self._goes(lease, given.domid) and lease.vm_domid != NO_DOMAIN:
                # One that crashed, and is kept.
                await self._take_away(lease, given, what, force=True)
        if self.is_attached(lease):
            raise DriverError(f"{what}: it is still there", code="failed" if force else "busy")
        await self._afterwards(lease)

    def _is_over(self, lease: Lease) -> bool:
        return lease.vm_domid == NO_DOMAIN or self._has_ended(lease.vm_domid)

    async def _take_away(self, lease: Lease, given: Given, what: str, *, force: bool) -> None:
        """DriverError if the domain has it as before."""
        words = ("pci-detach", *(("-f",) if force else ()), str(given.domid), given.address)
        try:
            with self.moving([lease]):
                await self._xl.run(*words, seconds=DETACH_SECONDS, what=what)
        except DriverError as error:
            with pciback.asking():
                left = pciback.given_to(self._store(), given.domid)
            if given.address in {each.address for each in left}:
                code = error.code if force else "busy"
                raise DriverError(str(error), code=code, hint=error.hint) from error
            if not (isinstance(error, Unfinished) and error.still_runs):
                self._unclear.settle([lease.attachment])  # xl takes it out of xenstore at the end

    async def _goes(self, lease: Lease, domid: int) -> bool:
        """Whether a domain that has ended is gone, with all that it had, waiting for that."""
        # Another toolstack's domain may have more devices, which xl takes away one by one.
        seconds = DESTROY_SECONDS_EACH * max(1, self.count(domid))
        return await wait_for(
            self._store(),
            self._open_store,
            f"{DOMAINS}/{domid}/name",
            lambda _store: not self.is_attached(lease),
            seconds,
        )

    async def _afterwards(self, lease: Lease) -> None:
        """No VM has it, as far as xenstore knows. It goes back to dom0 if that is wanted, or if no
        VM has had it, so that a failed start costs dom0 nothing. While there is a domain that may
        have it all the same, it stays away from dom0, whose driver would work on that VM's
        memory."""
        attachment, name = lease.attachment, str(lease.key)
        async with self._turn:
            is_unclear, address = self._unclear.close(lease), self._address(lease)
            mine = self._mine.pop(attachment, None)  # it is not wanted any more
            is_dom0s = _comes_back(lease) or (mine is not None and mine.had_driver is not None)
            # This does not fail: what is free for others must not stay here as wanted.
            may_have = self._unclear.may_be_in_a_vm(lease.key.device)
            try:
                if address is not None and is_dom0s and not may_have:
                    await self._dom0.put_back(address, name, if_none_has=True)
                elif address is not None:
                    told = is_unclear or may_have
                    await self._dom0.tell_where(address, name, is_unclear=told)
            except BaseException:  # who is cancelled has not done it
                if mine is not None:
                    self._mine[attachment] = mine
                if is_unclear:
                    self._unclear.note(lease)
                raise

    def _is_wanted(self, address: str) -> bool:
        """Whether a VM has the device there, may have it, or is about to. DriverError."""
        with pciback.asking():
            has = {each.address for each in pciback.given(self._store())}
        has |= {mine.address for mine in self._mine.values()}
        return address in has or address in map(self._address_of, self._unclear.left())

    # Looking

    def _given(self, lease: Lease) -> Given | None:
        """The record of the domain that has it, if that is the lease's. DriverError."""
        address = self._address(lease)
        with pciback.asking():
            store = self._store()
            if lease.vm_domid == NO_DOMAIN:  # whether a domain was made, nobody knows
                found = [
                    each
                    for each in pciback.given(store)
                    if pciback.name_of(store, each.domid) == lease.vm
                ]
            else:
                found = pciback.given_to(store, lease.vm_domid)
        for each in found:
            # One that was unplugged from dom0 has no address any more.
            is_called_so = lease.frontend is not None and each.name_there == lease.frontend
            if each.address == address or (address is None and is_called_so):
                return each
        return None

    def _address(self, lease: Lease) -> str | None:
        """Where it is; None if it is not there any more. Never waits: sysfs is in memory."""
        if (mine := self._mine.get(lease.attachment)) is not None:
            return mine.address
        return self._address_of(lease.key.device)

    def _address_of(self, device: str) -> str | None:
        try:
            return pci_sysfs.address_of(self._sys, device)
        except OSError as error:
            raise DriverError(f"the PCI devices cannot be looked at: {error}") from error


def _comes_back(lease: Lease) -> bool:
    return lease.options.get("give-back") == "yes"


def _is_strict(options: Mapping[str, str]) -> bool:
    return options.get("no-strict-reset") != "yes"
