"""PCI devices on Xen: what xl is told, and what it is not told because it would say nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.drivers.base import NO_DOMAIN, DriverError
from pedos_dom0.drivers.xen import pci as xen_pci
from pedos_dom0.drivers.xen import pci_dom0, pci_sysfs
from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_dom0.drivers.xen.pci import XenPci
from pedos_dom0.drivers.xen.pci_sysfs import Function
from pedos_dom0.drivers.xen.xl import Unfinished
from pedos_dom0.tables.leases import Lease
from pedos_dom0.tables.registry import DeviceKey
from pedos_host import exclusive, pci_use
from pedos_host.threads import NoThreadError

from tests.dom0.test_xen_driver import host, running
from tests.dom0.xen_host import Host
from tests.patience import PATIENCE
from tests.pci_tree import BRIDGE, ROOT_PORT, TO_PCI, PciTree

__all__ = ["host"]  # the fixture

# One on the root bus, that cannot be reset, one alone behind a root port, two behind one bridge.
ROOT, ALONE, ONE, TWO = "00_04.0", "00_1c.0-00.0", "00_1d.0-00.0-01.0", "00_1d.0-00.0-02.0"
ADDRESSES = {
    ROOT: "0000:00:04.0",
    ALONE: "0000:02:00.0",
    ONE: "0000:04:01.0",
    TWO: "0000:04:02.0",
}
LOOSE = {"no-strict-reset": "yes"}


@pytest.fixture
def tree(host: Host) -> PciTree:
    tree = PciTree(host.root)
    (tree.sys / "bus/pci/drivers/pciback").mkdir(parents=True)
    (tree.sys / "bus/pci/drivers/pciback/permissive").touch()
    tree.add("00:00.0", kind="060000", reset=False)
    tree.add("00:04.0", driver="xhci_hcd", reset=False)
    tree.add("00:1c.0", kind=BRIDGE, port_type=ROOT_PORT, driver="pcieport")
    tree.add("00:1c.0/02:00.0", driver="xhci_hcd")
    tree.add("00:1d.0", kind=BRIDGE, port_type=ROOT_PORT, driver="pcieport")
    tree.add("00:1d.0/03:00.0", kind=BRIDGE, port_type=TO_PCI)
    tree.add("00:1d.0/03:00.0/04:01.0", driver="xhci_hcd")
    tree.add("00:1d.0/03:00.0/04:02.0", driver="xhci_hcd")
    return tree


def lease(
    device: str = ALONE,
    vm: str = "work",
    domid: int = NO_DOMAIN,
    options: Mapping[str, str] | None = None,
    backend: str = "dom0",
) -> Lease:
    return Lease(
        attachment=f"{device}-{vm}",
        key=DeviceKey("pci", backend, device),
        vm=vm,
        options=options or {},
        frontend=None,
        port=16,
        backend_domid=0,
        vm_domid=domid,
        state="pending",
    )


def carrier(driver: XenDriver) -> XenPci:
    found = driver.carriers["pci"]
    assert isinstance(found, XenPci)
    return found


def driver_of(tree: PciTree, device: str = ALONE) -> str | None:
    return pci_sysfs.driver_of(tree.sys, ADDRESSES[device])


def told(host: Host) -> list[str]:
    """What xl was told to do, without its questions."""
    return [" ".join(call) for call in host.calls() if call[0] not in ("info", "create")]


async def start(host: Host, driver: XenDriver, *leases: Lease, runs: bool = True) -> list[Lease]:
    """As a VM's start does it; the leases as they are then."""
    (vm,) = {each.vm for each in leases}
    host.configure(vm)
    for each in leases:
        await carrier(driver).prepare(each)
    await driver._read_configs()
    domid = await driver.start(vm, leases)
    made = [attrs.evolve(each, vm_domid=domid) for each in leases]
    for each in made:
        await carrier(driver).attach(each)
    if runs:
        await driver.resume(vm, domid)
    return made


async def test_a_vm_is_made_with_its_devices_and_they_stay_with_pciback_after_it(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        made, second = await start(host, driver, lease(), lease(ONE))
        assert carrier(driver).is_attached(made)
        assert carrier(driver).given_name(second) == "00_01.0"
        (create,) = host.calls("create")
        assert create[3:] == ['pci += [ "0000:02:00.0", "0000:04:01.0" ]']
        assert driver_of(tree) == "pciback"
        host.destroy(made.vm_domid)
        await carrier(driver).detach(made, force=True)
        assert not carrier(driver).is_attached(made)
        assert driver_of(tree) == "pciback"
        assert told(host) == [
            "pci-assignable-add 0000:02:00.0",
            "pci-assignable-add 0000:04:01.0",
            "unpause 1",
        ]


async def test_a_device_comes_back_to_dom0_if_that_is_wanted(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(options={"give-back": "yes"}))
        host.destroy(made.vm_domid)
        await carrier(driver).detach(made, force=True)
        assert driver_of(tree) == "xhci_hcd"
        assert told(host)[-1] == "pci-assignable-remove -r 0000:02:00.0"


async def test_a_device_that_no_vm_got_is_where_it_was(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        prepared = lease()
        await carrier(driver).prepare(prepared)
        assert driver_of(tree) == "pciback"
        await carrier(driver).detach(prepared, force=True)
        assert driver_of(tree) == "xhci_hcd"


async def test_a_device_of_a_vm_that_never_ran_is_where_it_was(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(), runs=False)
        await driver.shutdown("work", force=True)
        await carrier(driver).detach(made, force=True)
        assert driver_of(tree) == "xhci_hcd"


async def test_a_device_that_was_hidden_at_boot_stays_hidden(host: Host, tree: PciTree) -> None:
    tree.bind(ADDRESSES[ALONE], "pciback")
    async with running(host) as driver:
        prepared = lease()
        await carrier(driver).prepare(prepared)
        await carrier(driver).detach(prepared, force=True)
        assert driver_of(tree) == "pciback"
        assert told(host) == []


REFUSED = [
    (lease("00_00.0"), "is a bridge"),
    (lease("00_1c.0"), "is a bridge"),
    (lease("00_1f.0"), "not there any more"),
    (lease("foo"), "not there any more"),
    (lease(ROOT), "cannot be reset between two VMs"),
    (lease(backend="sys-usb"), "only dom0's own"),
    (lease(options={"read-only": "yes"}), "no PCI device can be that"),
]


@pytest.mark.parametrize(("refused", "why"), REFUSED)
async def test_what_cannot_be_given_is_refused_before_anything_is_done(
    host: Host, tree: PciTree, refused: Lease, why: str
) -> None:
    async with running(host) as driver:
        with pytest.raises(DriverError, match=why):
            await carrier(driver).prepare(refused)
    assert told(host) == []
    assert driver_of(tree) == "xhci_hcd"


async def test_one_that_was_put_in_its_place_since_it_was_allowed_is_refused(
    host: Host, tree: PciTree
) -> None:
    """dom0's agent may not have reported that yet."""
    allowed = attrs.evolve(lease(), identity="8086:2526::p028000")
    async with running(host) as driver:
        with pytest.raises(DriverError, match="is another device by now") as caught:
            await carrier(driver).prepare(allowed)
        assert "'1b36:000d::p0c0330', and '8086:2526::p028000' was allowed" in str(caught.value)
        assert driver_of(tree) == "xhci_hcd"
        assert told(host) == []
        await carrier(driver).prepare(attrs.evolve(allowed, identity="1b36:000d::p0c0330"))


@pytest.mark.parametrize("had", ["xhci_hcd", "pciback"])
@pytest.mark.parametrize("becomes", ["another", "gone", "dom0's"])
async def test_neither_is_one_given_that_was_put_there_while_the_other_was_taken(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch, had: str, becomes: str
) -> None:
    tree.bind(ADDRESSES[ALONE], had)
    reset = pci_sysfs.reset
    driver_there = pci_sysfs.driver_of

    def change() -> None:
        if becomes == "another":
            (tree.folder(ADDRESSES[ALONE]) / "device").write_text("0x2526\n")
        elif becomes == "gone":
            (tree.sys / "bus/pci/devices" / ADDRESSES[ALONE]).unlink()
        else:
            tree.bind(ADDRESSES[ALONE], "xhci_hcd")

    def after_reset(sys_root: Path, address: str) -> None:
        reset(sys_root, address)
        if had == "pciback":
            change()

    def after_look(sys_root: Path, address: str) -> str | None:
        found = driver_there(sys_root, address)
        if had != "pciback" and found == "pciback":
            monkeypatch.setattr(pci_sysfs, "driver_of", driver_there)
            change()
        return found

    monkeypatch.setattr(pci_sysfs, "reset", after_reset)
    monkeypatch.setattr(pci_sysfs, "driver_of", after_look)
    why = {"another": "another device by now", "gone": "not there any more"}
    async with running(host) as driver:
        with pytest.raises(DriverError, match=why.get(becomes, "with xhci_hcd by now")):
            await carrier(driver).prepare(lease())
        assert not carrier(driver)._is_wanted(ADDRESSES[ALONE])
    if becomes == "another":
        assert driver_of(tree) == had


async def test_what_is_attached_is_no_stray(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        assert carrier(driver).is_attached(made)
        assert carrier(driver).strays() == {}


async def test_one_that_cannot_be_reset_is_given_if_that_is_wanted(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(ROOT, options=LOOSE))
        assert carrier(driver).is_attached(made)


async def test_a_reset_that_fails_counts_as_none(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_sys: Path, address: str) -> None:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device", address)

    monkeypatch.setattr(pci_sysfs, "reset", fail)
    async with running(host) as driver:
        with pytest.raises(DriverError, match="Inappropriate ioctl") as caught:
            await carrier(driver).prepare(lease())
        assert "no-strict-reset=yes" in (caught.value.hint or "")
        assert told(host) == []
        await carrier(driver).prepare(lease(options=LOOSE))


async def test_a_device_is_reset_before_each_vm_gets_it(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.destroy(made.vm_domid)
        await carrier(driver).detach(made, force=True)
        reset = tree.folder(ADDRESSES[ALONE]) / "reset"
        assert reset.read_text() == "1"
        reset.write_text("")
        (made,) = await start(host, driver, lease(vm="vault"))
        assert reset.read_text() == "1"


async def test_without_an_iommu_no_vm_gets_a_device(host: Host, tree: PciTree) -> None:
    host.plan(info={"caps": "hap shadow"})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="no IOMMU"):
            await carrier(driver).prepare(lease())
        assert told(host) == []
        host.plan()
        await carrier(driver).prepare(lease())


async def test_what_dom0_has_mounted_is_not_taken_from_it(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.disk(tree.folder(ADDRESSES[ALONE]), "sda")
    plain = os.open
    monkeypatch.setattr(exclusive, "HELD_RETRY_SECONDS", 0)

    def answer(path: str, flags: int, *rest: int, **more: int) -> int:
        if str(path).endswith("/sda"):
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        return plain(path, flags, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(exclusive.os, "open", answer)
        async with running(host) as driver:
            with pytest.raises(DriverError, match="in use in dom0: its disk sda") as caught:
                await carrier(driver).prepare(lease())
    assert caught.value.code == "busy"
    assert told(host) == []


async def test_an_interface_that_is_up_is_not_taken_from_dom0(host: Host, tree: PciTree) -> None:
    tree.interface(ADDRESSES[ALONE], "eth0", up=True)
    async with running(host) as driver:
        with pytest.raises(DriverError, match="eth0 is up"):
            await carrier(driver).prepare(lease())


async def test_two_behind_one_bridge_go_to_one_vm_alone(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(ONE))
        with pytest.raises(DriverError, match=r"kept apart from 04:01\.0, which work has"):
            await carrier(driver).prepare(lease(TWO, vm="vault"))
        host.destroy(made.vm_domid)
        await carrier(driver).detach(made, force=True)
        await start(host, driver, lease(TWO, vm="vault"))


async def test_neither_do_they_while_both_vms_are_being_made(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        await carrier(driver).prepare(lease(ONE))
        with pytest.raises(DriverError, match="which work has"):
            await carrier(driver).prepare(lease(TWO, vm="vault"))
        await carrier(driver).prepare(lease(TWO))


async def test_what_plain_xl_has_given_is_not_given_again(host: Host, tree: PciTree) -> None:
    tree.bind(ADDRESSES[ALONE], "pciback")
    host.create(7, "other")
    given(host, 7, ADDRESSES[ALONE])
    async with running(host) as driver:
        with pytest.raises(DriverError, match=r"is in other \(domain 7\)") as caught:
            await carrier(driver).prepare(lease())
        assert caught.value.code == "busy"
        assert carrier(driver).strays() == {ALONE: "other"}
        host.destroy(7)  # its record in xenstore stays
        assert carrier(driver).strays() == {}
        await carrier(driver).prepare(lease())


def given(host: Host, domid: int, address: str) -> None:
    node = f"/local/domain/0/backend/pci/{domid}/0"
    host.put(f"{node}/num_devs", "1")
    host.put(f"{node}/dev-0", address)
    host.put(f"{node}/vdev-0", "0000:00:00.00")
    host.put(f"{node}/state", "4")


async def test_a_device_that_the_configuration_gives_too_is_refused(
    host: Host, tree: PciTree
) -> None:
    host.configure("work")
    with (host.root / "etc/work.cfg").open("a") as file:
        file.write("pci = [ '02:00.0,permissive=1' ]\n")
    async with running(host) as driver:
        await carrier(driver).prepare(lease())
        with pytest.raises(DriverError, match=r"gives work 0000:02:00\.0 itself"):
            await driver.start("work", [lease()])
        assert host.calls("create") == []


async def test_permissive_is_read_back(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        options = {"permissive": "yes"}
        (made,) = await start(host, driver, lease(options=options))
        assert host.calls("create")[0][3] == 'pci += [ "0000:02:00.0,permissive=1" ]'
        host.destroy(made.vm_domid)
        await carrier(driver).detach(made, force=True)
        (tree.sys / "bus/pci/drivers/pciback/permissive").write_text("")
        host.plan(create={"forgets": True, "does": True})
        with pytest.raises(DriverError, match="permissive=yes did not take effect"):
            await start(host, driver, lease(options=options))


# A VM that runs


async def test_a_vm_that_was_made_with_a_device_gets_one_more_while_it_runs(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        second = lease(ONE, domid=made.vm_domid)
        assert not carrier(driver).can_give_live(made.vm_domid)  # its kernel is not there yet
        host.put(f"/local/domain/0/backend/pci/{made.vm_domid}/0/state", "4")
        await carrier(driver).attach(second)
        assert told(host)[-1] == "pci-attach 1 0000:04:01.0"
        assert carrier(driver).given_name(second) == "00_01.0"
        await carrier(driver).detach(made, force=False)
        assert told(host)[-1] == "pci-detach 1 0000:02:00.0"
        assert not carrier(driver).is_attached(made)
        assert carrier(driver).is_attached(second)
        assert driver_of(tree) == "pciback"


@pytest.mark.parametrize("give_back", ["yes", "no"])
async def test_one_that_a_vm_could_not_take_comes_back_only_if_that_is_wanted_and_that_is_told(
    host: Host, tree: PciTree, give_back: str
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.put(f"/local/domain/0/backend/pci/{made.vm_domid}/0/state", "4")
        second = lease(ONE, domid=made.vm_domid, options={"give-back": give_back})
        host.plan(**{"pci-attach": {"exit": 1, "says": "libxl: error: Backend not ready"}})
        with pytest.raises(DriverError, match="Backend not ready") as caught:
            await carrier(driver).attach(second)
        await carrier(driver).detach(second, force=False)
        if give_back == "yes":
            assert driver_of(tree, ONE) == "xhci_hcd"
            assert "pciback" not in str(caught.value)
        else:
            assert driver_of(tree, ONE) == "pciback"
            assert "it stays with pciback, and xhci_hcd does not get it back" in str(caught.value)
            assert caught.value.hint == "xl pci-assignable-remove -r 0000:04:01.0"


# An xl that is killed half-way: by a person, or because memory is short


async def live(host: Host, driver: XenDriver, **options: str) -> tuple[Lease, Lease]:
    """A VM that has a device, and a lease of another one to give to it while it runs."""
    (made,) = await start(host, driver, lease())
    host.put(f"/local/domain/0/backend/pci/{made.vm_domid}/0/state", "4")
    return made, lease(ONE, domid=made.vm_domid, options=options)


@pytest.mark.parametrize("give_back", ["yes", "no"])
async def test_what_a_killed_xl_has_given_is_taken_away_like_anything_else(
    host: Host, tree: PciTree, give_back: str
) -> None:
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": give_back})
        host.plan(pci_attach={"does": True, "killed": True})
        with pytest.raises(DriverError, match="xl pci-attach was killed by SIGKILL"):
            await carrier(driver).attach(second)
        assert carrier(driver).is_attached(second)
        await carrier(driver).detach(second, force=False)
        assert "pci-detach 1 0000:04:01.0" in told(host)
        assert not carrier(driver).is_attached(second)
        assert driver_of(tree, ONE) == ("xhci_hcd" if give_back == "yes" else "pciback")


async def test_what_a_killed_xl_may_have_given_does_not_go_back_to_dom0(
    host: Host, tree: PciTree
) -> None:
    """The hypervisor knows of it before xenstore does; dom0's driver would write into the VM."""
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": "yes"})
        host.plan(pci_attach={"killed": True})
        with pytest.raises(DriverError, match="it stays with pciback") as caught:
            await carrier(driver).attach(second)
        assert caught.value.hint == "xl pci-assignable-remove -r 0000:04:01.0"
        await carrier(driver).detach(second, force=False)
        assert driver_of(tree, ONE) == "pciback"
        assert "pci-assignable-remove" not in " ".join(told(host))


async def test_neither_does_what_was_being_given_when_the_service_was_told_to_end(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": "yes"})
        with trio.CancelScope() as service:
            run = driver._xl.run

            async def ends(*words: str, **more: Any) -> str:
                if words[0] == "pci-attach":
                    service.cancel()
                return await run(*words, **more)

            monkeypatch.setattr(driver._xl, "run", ends)
            await carrier(driver).attach(second)
        assert service.cancelled_caught
        await carrier(driver).detach(second, force=False)
        assert driver_of(tree, ONE) == "pciback"
    assert "xl pci-assignable-remove -r 0000:04:01.0" in caplog.text


@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize("state", ["pending", "detaching"])
async def test_what_a_killed_service_worked_on_goes_back_to_dom0_only_if_the_vm_has_ended(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture, state: str, has_ended: bool
) -> None:
    async with running(host) as driver:
        made, second = await live(host, driver, **{"give-back": "yes"})
        await carrier(driver).attach(second)
    host.put(f"/local/domain/0/backend/pci/{made.vm_domid}/0/num_devs", "1")  # it was last
    row = attrs.evolve(second, state=state)
    async with running(host) as driver:
        carrier(driver).adopt([made, row])
        if has_ended:
            host.destroy(made.vm_domid)
        await carrier(driver).detach(row, force=False)
    assert driver_of(tree, ONE) == ("xhci_hcd" if has_ended else "pciback")
    assert ("to give it back to dom0, once no VM can have it: xl" in caplog.text) != has_ended


async def test_neither_does_one_that_could_not_be_looked_at_when_the_service_began(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.bind(ADDRESSES[ONE], "pciback")
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": "yes"})
    async with running(host) as driver:
        with monkeypatch.context() as patched:
            patched.setattr(pci_sysfs, "address_of", unreadable)
            carrier(driver).adopt([second])
        await carrier(driver).detach(second, force=False)
        assert driver_of(tree, ONE) == "pciback"
        assert "pci-assignable-remove" not in " ".join(told(host))


def unreadable(_sys: Path, device_id: str) -> str | None:
    raise OSError(errno.EIO, "Input/output error", device_id)


async def test_what_a_killed_service_took_from_dom0_for_no_vm_is_told_to_be_with_pciback(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows any more that dom0 had it before."""
    async with running(host) as driver:
        await carrier(driver).prepare(lease())
    async with running(host) as driver:
        carrier(driver).adopt([lease()])
        await carrier(driver).detach(lease(), force=True)
    assert driver_of(tree) == "pciback"
    assert "dom0:00_1c.0-00.0 stays with pciback" in caplog.text
    assert "once no VM can have it: xl pci-assignable-remove -r 0000:02:00.0" in caplog.text


async def test_nothing_is_told_of_a_device_that_stays_with_pciback_as_it_should(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
    async with running(host) as driver:
        carrier(driver).adopt([attrs.evolve(made, state="attached")])
        host.destroy(made.vm_domid)
        await carrier(driver).detach(made, force=True)
    assert driver_of(tree) == "pciback"
    assert "pciback" not in caplog.text


@pytest.mark.parametrize("does", [True, False])
async def test_a_detach_whose_xl_was_killed_is_one_if_the_device_is_gone(
    host: Host, tree: PciTree, does: bool
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.plan(pci_detach={"does": does, "killed": True})
        if does:
            await carrier(driver).detach(made, force=False)
        else:
            with pytest.raises(DriverError, match="was killed by SIGKILL") as caught:
                await carrier(driver).detach(made, force=False)
            assert caught.value.code == "busy"
            assert carrier(driver).is_attached(made)
            host.plan()
            await carrier(driver).detach(made, force=False)
        assert not carrier(driver).is_attached(made)


@pytest.mark.parametrize("is_known", [True, False])
async def test_what_an_xl_that_cannot_be_killed_is_taking_away_does_not_go_back_to_dom0(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """It is out of xenstore already, and the VM may still have it."""
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(options={"give-back": "yes"}))
        if not is_known:  # it could not be looked at when the service began
            carrier(driver)._mine.clear()
        run = driver._xl.run

        async def hang(*words: str, **more: Any) -> str:
            said = await run(*words, **more)
            if words[0] == "pci-detach":
                unfinished = Unfinished("it was not detached: xl pci-detach did not end")
                unfinished.still_runs = True
                raise unfinished
            return said

        monkeypatch.setattr(driver._xl, "run", hang)
        await carrier(driver).detach(made, force=False)
        assert driver_of(tree) == "pciback"
        assert "pci-assignable-remove" not in " ".join(told(host))


async def test_a_start_whose_xl_was_killed_leaves_no_domain_and_no_device_without_its_driver(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        both = lease(), lease(ONE)
        host.plan(create={"does": True, "gives": 1, "killed": True})
        with pytest.raises(DriverError, match="xl create was killed by SIGKILL"):
            await start(host, driver, *both)
        assert host.calls("destroy") == [["destroy", "1"]]
        for each in both:
            await carrier(driver).detach(each, force=True)
            assert driver_of(tree, each.key.device) == "xhci_hcd"
        assert carrier(driver).strays() == {}


async def test_what_a_half_made_vm_may_have_does_not_go_back_to_dom0_while_that_is_there(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(host) as driver:
        host.plan(create={"does": True, "gives": 0, "killed": True}, destroy={"exit": 1})
        with pytest.raises(DriverError, match="xl create was killed by SIGKILL"):
            await start(host, driver, lease())
        await carrier(driver).detach(lease(), force=True)
        assert driver_of(tree) == "pciback"
        assert "xl pci-assignable-remove -r 0000:02:00.0" in caplog.text


async def test_what_a_vm_may_have_whose_making_was_cancelled_does_not_go_back_either(
    host: Host, tree: PciTree
) -> None:
    host.configure("work")
    async with running(host) as driver:
        await driver._read_configs()
        await carrier(driver).prepare(lease())
        host.plan(create={"does": True, "gives": 0, "hangs": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.start, "work", [lease()])
            await host.until_introduced()
            nursery.cancel_scope.cancel()
        await carrier(driver).detach(lease(), force=True)
        assert driver_of(tree) == "pciback"


# A detach that is cancelled


async def test_a_detach_that_is_cancelled_before_its_turn_keeps_what_is_known(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        await carrier(driver).prepare(lease())
        async with carrier(driver)._turn, trio.open_nursery() as nursery:
            nursery.start_soon(partial(carrier(driver).detach, lease(), force=True))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await carrier(driver).detach(lease(), force=True)
        assert driver_of(tree) == "xhci_hcd"


async def test_neither_is_that_lost_in_its_turn(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        await carrier(driver).prepare(lease())
        host.plan(pci_assignable_remove={"does": False, "hangs": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(carrier(driver).detach, lease(), force=True))
            await host.until_called("pci-assignable-remove", 1)
            nursery.cancel_scope.cancel()
        assert driver_of(tree) == "pciback"
        host.plan()
        await carrier(driver).detach(lease(), force=True)
        assert driver_of(tree) == "xhci_hcd"


# Between two drivers


@pytest.mark.parametrize("killed", [{"killed": True}, {"exit": 1}], ids=["killed", "failed"])
async def test_an_xl_that_ends_before_dom0s_driver_has_it_back_leaves_it_to_that(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture, killed: dict[str, int]
) -> None:
    (tree.sys / "bus/pci/drivers_probe").touch()
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(options={"give-back": "yes"}))
        host.destroy(made.vm_domid)
        host.plan(pci_assignable_remove={"half": True, "does": True, **killed})
        await carrier(driver).detach(made, force=True)
        assert (tree.sys / "bus/pci/drivers_probe").read_text() == "0000:02:00.0"
        assert "stays with pciback" not in caplog.text


async def test_an_xl_that_is_killed_before_that_leaves_it_with_pciback_and_that_is_told(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease(options={"give-back": "yes"}))
        host.destroy(made.vm_domid)
        host.plan(pci_assignable_remove={"killed": True})
        await carrier(driver).detach(made, force=True)
        assert driver_of(tree) == "pciback"
        assert "could not be given back to dom0, and stays with pciback" in caplog.text


@pytest.mark.parametrize("how", [{"exit": 1}, {"killed": True}], ids=["failed", "killed"])
async def test_an_xl_that_ends_between_the_drivers_leaves_the_device_to_dom0s(
    host: Host, tree: PciTree, how: dict[str, int]
) -> None:
    (tree.sys / "bus/pci/drivers_probe").touch()
    async with running(host) as driver:
        host.plan(**{"pci-assignable-add": {"half": True, "does": True, **how}})
        with pytest.raises(DriverError, match="could not be taken from dom0"):
            await carrier(driver).prepare(lease())
        assert (tree.sys / "bus/pci/drivers_probe").read_text() == "0000:02:00.0"


async def test_a_service_that_was_killed_with_xl_between_the_drivers_tells_of_it_afterwards(
    host: Host, tree: PciTree, caplog: pytest.LogCaptureFixture
) -> None:
    (tree.sys / "bus/pci/drivers_probe").touch()
    tree.bind(ADDRESSES[ALONE], None)
    async with running(host) as driver:
        carrier(driver).adopt([lease()])
        await carrier(driver).detach(lease(), force=True)
    assert "dom0:00_1c.0-00.0 has no driver" in caplog.text
    assert "echo 0000:02:00.0 > /sys/bus/pci/drivers_probe" in caplog.text
    assert (tree.sys / "bus/pci/drivers_probe").read_text() == ""


async def test_one_that_was_made_without_is_not_asked_to_take_one(
    host: Host, tree: PciTree
) -> None:
    """xl would try, fail after 10 s, and then fail until the VM has ended."""
    host.create(7, "work")
    async with running(host) as driver:
        with pytest.raises(DriverError, match="only when it starts") as caught:
            await carrier(driver).attach(lease(domid=7))
        assert "attach --persistent work dom0:00_1c.0-00.0" in (caught.value.hint or "")
        assert told(host) == []
        assert driver_of(tree) == "xhci_hcd"


async def test_what_a_vm_does_not_release_stays_with_it_unless_by_force(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.plan(pci_detach={"exit": 1, "says": "libxl: error: pci backend not ready"})
        with pytest.raises(DriverError, match="pci backend not ready") as caught:
            await carrier(driver).detach(made, force=False)
        assert caught.value.code == "busy"
        assert carrier(driver).is_attached(made)
        host.plan()
        await carrier(driver).detach(made, force=True)
        assert told(host)[-1] == "pci-detach -f 1 0000:02:00.0"


async def test_an_end_that_xl_could_not_do_but_did_is_one(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.plan(pci_detach={"exit": 1, "does": True, "says": "libxl: error: timed out"})
        await carrier(driver).detach(made, force=False)
        assert not carrier(driver).is_attached(made)


async def test_a_device_is_free_when_nothing_is_left_of_its_domain(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.flag(made.vm_domid, "---s--")
        host.fire("@releaseDomain")
        with trio.fail_after(10):
            while not driver._has_ended(made.vm_domid):
                await driver._waiting.park()
        assert carrier(driver).is_attached(made)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destroy_soon, host, made.vm_domid)
            await carrier(driver).detach(made, force=True)
        assert not carrier(driver).is_attached(made)
        assert "pci-detach" not in " ".join(told(host))


async def destroy_soon(host: Host, domid: int) -> None:
    await trio.testing.wait_all_tasks_blocked()
    host.destroy(domid)


async def test_what_a_crashed_domain_keeps_is_taken_from_it(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_pci, "DESTROY_SECONDS_EACH", 0.01)
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        host.flag(made.vm_domid, "---c--")
        host.fire("@releaseDomain")
        with trio.fail_after(10):
            while not driver._has_ended(made.vm_domid):
                await driver._waiting.park()
        await carrier(driver).detach(made, force=True)
        assert told(host)[-1] == "pci-detach -f 1 0000:02:00.0"


# A restart of the service


async def test_a_new_service_finds_what_a_domain_has(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
    async with running(host) as driver:
        carrier(driver).adopt([made])
        assert carrier(driver).is_attached(made)
        with pytest.raises(DriverError, match="is in work"):
            await carrier(driver).prepare(lease(vm="vault"))


async def test_what_was_unplugged_from_dom0_is_found_by_its_name_in_the_vm(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
        made = attrs.evolve(made, frontend=carrier(driver).given_name(made))
    (tree.sys / "bus/pci/devices" / ADDRESSES[ALONE]).unlink()
    async with running(host) as driver:
        carrier(driver).adopt([made])
        assert carrier(driver).is_attached(made)
        await carrier(driver).detach(made, force=True)
        assert told(host)[-1] == "pci-detach -f 1 0000:02:00.0"


async def test_of_a_vm_whose_making_was_interrupted_the_device_is_free_when_it_has_ended(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed service knows no domain of the VM: whether one was made, xenstore tells."""
    monkeypatch.setattr(xen_pci, "DESTROY_SECONDS_EACH", 0.01)
    async with running(host) as driver:
        (made,) = await start(host, driver, lease())
    async with running(host) as driver:
        reserved = lease()
        carrier(driver).adopt([reserved])
        with pytest.raises(DriverError, match="still there"):
            await carrier(driver).detach(reserved, force=True)
        host.destroy(made.vm_domid)
        await carrier(driver).detach(reserved, force=True)
        assert driver_of(tree) == "pciback"


# A dry run


async def test_what_would_be_refused_is_told_beforehand_and_nothing_changes(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:

        async def unfit(device: str, options: Mapping[str, str] | None = None) -> str | None:
            return await carrier(driver).why_unfit(lease(device).key, "work", options or {})

        assert await unfit(ALONE) is None
        assert "no-strict-reset" not in (await unfit(ROOT) or "")
        assert "cannot be reset" in (await unfit(ROOT) or "")
        assert await unfit(ROOT, LOOSE) is None
        assert "is a bridge" in (await unfit("00_1c.0") or "")
        tree.interface(ADDRESSES[ALONE], "eth0", up=True)
        assert "eth0 is up" in (await unfit(ALONE) or "")
    assert told(host) == []
    assert (tree.folder(ADDRESSES[ALONE]) / "reset").read_text() == ""


async def test_a_look_holds_a_devices_disks_only_in_its_turn(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or who is about to give the device would find them in use."""
    async with running(host) as driver:
        pci = carrier(driver)
        unused, turns = pci._dom0.unused, []

        def in_turn(function: Function, name: str) -> contextlib.AbstractAsyncContextManager[None]:
            turns.append(pci._turn.locked())
            return unused(function, name)

        monkeypatch.setattr(pci._dom0, "unused", in_turn)
        assert await pci.why_unfit(lease().key, "work", {}) is None
        await pci.prepare(lease())
        assert turns == [True, True] and not pci._turn.locked()


async def test_a_look_does_not_wait_for_one_that_hangs(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_pci, "LOOK_SECONDS", 0.01)
    async with running(host) as driver, trio.open_nursery() as nursery:

        async def hang() -> None:
            async with carrier(driver)._turn:
                await trio.sleep_forever()

        nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        why = await carrier(driver).why_unfit(lease().key, "work", {})
        assert why == "another PCI device is being given to a VM, and this one was not looked at"
        nursery.cancel_scope.cancel()


async def test_disks_that_do_not_close_stop_no_other_work_on_pci_devices(
    host: Host,
    tree: PciTree,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    closing, closes, closed = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    @contextlib.contextmanager
    def held(*_roots: str) -> Iterator[None]:
        yield
        assert threading.current_thread() is not threading.main_thread()
        closing.release()
        closes.wait(PATIENCE)
        closed.release()

    monkeypatch.setattr(pci_use, "held", held)
    monkeypatch.setattr(pci_dom0, "CLOSE_SECONDS", 0.01)
    async with running(host) as driver:
        try:
            assert await carrier(driver).why_unfit(lease().key, "work", {}) is None
            assert "the disks of 0000:02:00.0 are not closed after 0.01 s" in caplog.text
            await carrier(driver).prepare(lease())  # closes them, too, while the first ones hang
            assert driver_of(tree) == "pciback"
            for _ in range(2):
                assert closing.acquire(timeout=PATIENCE)
        finally:
            closes.set()
    for _ in range(2):
        assert closed.acquire(timeout=PATIENCE)


async def test_disks_that_no_thread_closes_in_time_are_closed_by_one_later(
    host: Host,
    tree: PciTree,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And never in the event loop, where all VMs would wait for a disk."""
    closed_by: list[threading.Thread] = []
    closed, tried = threading.Event(), trio.Event()
    start_in_thread, lacks = pci_dom0.start_in_thread, [True]

    @contextlib.contextmanager
    def held(*_roots: str) -> Iterator[None]:
        try:
            yield
        finally:
            closed_by.append(threading.current_thread())
            closed.set()

    def start_close(*work: Any) -> None:
        if lacks:
            if "are not closed" in caplog.text:
                tried.set()
            raise NoThreadError
        start_in_thread(*work)

    monkeypatch.setattr(pci_use, "held", held)
    monkeypatch.setattr(pci_dom0, "start_in_thread", start_close)
    monkeypatch.setattr(pci_dom0, "CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(pci_dom0, "NO_THREAD_SECONDS", 0.01)
    async with running(host) as driver:
        assert await carrier(driver).why_unfit(lease().key, "work", {}) is None
        assert "the disks of 0000:02:00.0 are not closed after 0.01 s" in caplog.text
        gc.collect()
        assert closed_by == []
        with trio.fail_after(PATIENCE):
            await tried.wait()
        lacks.clear()
        assert await trio.to_thread.run_sync(closed.wait, PATIENCE)
        assert closed_by[0] is not threading.main_thread()
    assert pci_dom0._to_close == set()


def test_disks_that_no_thread_has_closed_when_the_service_ends_are_not_closed_in_its_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed_by = []

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        try:
            yield
        finally:
            closed_by.append(threading.current_thread())

    def start_close(*_work: Any) -> None:
        raise NoThreadError

    async def service() -> None:
        holding = held()
        holding.__enter__()
        await pci_dom0._close(lambda: holding.__exit__(None, None, None), "the disks")

    monkeypatch.setattr(pci_dom0, "start_in_thread", start_close)
    monkeypatch.setattr(pci_dom0, "CLOSE_SECONDS", 0)
    trio.run(service)
    gc.collect()
    assert closed_by == []
    for close in pci_dom0._to_close:
        close()
    pci_dom0._to_close.clear()
    assert len(closed_by) == 1
