"""PCI devices that a VM may have though xenstore does not say so: dom0 and other VMs get none."""

from __future__ import annotations

import errno

import attrs
import pytest
from pedos_dom0.drivers.base import NO_DOMAIN, DriverError
from pedos_dom0.drivers.xen import pciback

from tests.dom0.test_pci_on_xen import (
    ADDRESSES,
    ONE,
    TWO,
    carrier,
    driver_of,
    lease,
    live,
    start,
    tree,
)
from tests.dom0.test_xen_driver import host, running
from tests.dom0.xen_host import Host
from tests.pci_tree import PciTree

__all__ = ["host", "tree"]  # the fixtures


async def test_what_xl_says_to_have_given_and_xenstore_does_not_have_stays_away_from_dom0(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": "yes"})
        host.plan(pci_attach={"does": False})
        with pytest.raises(DriverError, match=r"xl says nothing, .*it stays with pciback"):
            await carrier(driver).attach(second)
        await carrier(driver).detach(second, force=False)
        assert driver_of(tree, ONE) == "pciback"


async def test_so_does_what_a_vm_was_made_with_and_does_not_have_while_that_is_there(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        host.plan(create={"gives": 0})
        with pytest.raises(DriverError, match="xl has made work without it"):
            await start(host, driver, lease())
        made = lease(domid=1)
        await carrier(driver).detach(made, force=True)
        assert driver_of(tree) == "pciback"


async def test_what_a_vm_may_have_is_given_to_nobody_until_that_has_ended(
    host: Host, tree: PciTree
) -> None:
    """Or an attempt that fails would give it to dom0 while the VM has it."""
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": "yes"})
        host.plan(pci_attach={"killed": True})
        with pytest.raises(DriverError, match="was killed by SIGKILL"):
            await carrier(driver).attach(second)
        await carrier(driver).detach(second, force=False)
        reset = tree.folder(ADDRESSES[ONE]) / "reset"
        reset.write_text("")
        host.plan(pci_attach={"exit": 1})
        for attachment, vm, domid in (("2", "work", 1), ("3", "vault", NO_DOMAIN)):
            more = attrs.evolve(second, attachment=attachment, vm=vm, vm_domid=domid)
            give = carrier(driver).attach if domid == 1 else carrier(driver).prepare
            with pytest.raises(DriverError, match=r"may still be in work \(domain 1\)") as caught:
                await give(more)
            assert (caught.value.code, reset.read_text()) == ("busy", "")
            assert caught.value.hint is not None
            assert caught.value.hint.startswith("qvm-shutdown work: ")
            await carrier(driver).detach(more, force=True)
            assert driver_of(tree, ONE) == "pciback"
        host.destroy(1)
        await carrier(driver).prepare(lease(ONE, vm="vault"))
        assert reset.read_text() == "1"


async def test_neither_is_what_cannot_be_kept_apart_from_it(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        _, second = await live(host, driver)
        host.plan(pci_attach={"killed": True})
        with pytest.raises(DriverError, match="was killed by SIGKILL"):
            await carrier(driver).attach(second)
        await carrier(driver).detach(second, force=False)
        with pytest.raises(DriverError, match=r"kept apart from 04:01\.0, which work has"):
            await carrier(driver).prepare(lease(TWO, vm="vault"))
        host.destroy(1)
        await carrier(driver).prepare(lease(TWO, vm="vault"))


async def test_a_device_that_a_vm_may_have_is_no_matter_of_that_vms_next_domain(
    host: Host, tree: PciTree
) -> None:
    async with running(host) as driver:
        host.plan(create={"does": True, "gives": 0, "killed": True}, destroy={"exit": 1})
        with pytest.raises(DriverError, match="was killed by SIGKILL"):
            await start(host, driver, lease())
        await carrier(driver).detach(lease(), force=True)
        host.create(7, "work")
        host.destroy(1)
        await carrier(driver).prepare(lease(vm="vault"))


async def test_what_a_failed_detach_leaves_unclear_is_so_still(host: Host, tree: PciTree) -> None:
    async with running(host) as driver:
        _, second = await live(host, driver)
        host.plan(pci_attach={"does": True, "killed": True}, pci_detach={"exit": 1})
        with pytest.raises(DriverError, match="was killed by SIGKILL"):
            await carrier(driver).attach(second)
        with pytest.raises(DriverError, match="could not be detached"):
            await carrier(driver).detach(second, force=True)
        assert second.attachment in carrier(driver)._unclear


async def test_a_xenstore_that_fails_at_the_end_keeps_no_device_from_the_next_vm(
    host: Host, tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is free, so nothing asks for its end again."""
    async with running(host) as driver:
        _, second = await live(host, driver, **{"give-back": "yes"})
        host.plan(pci_attach={"killed": True})
        with pytest.raises(DriverError, match="was killed by SIGKILL"):
            await carrier(driver).attach(second)

        def fail(_store: object, _domid: int) -> bool:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(pciback, "given_to", lambda _store, _domid: [])
            patched.setattr(pciback, "exists", fail)
            await carrier(driver).detach(second, force=True)
            assert driver_of(tree, ONE) == "pciback"
        assert not carrier(driver).is_attached(second)
        assert driver_of(tree, ONE) == "pciback"
        assert carrier(driver)._is_wanted(ADDRESSES[ONE])  # whoever wants to put it back
        host.destroy(1)
        assert not carrier(driver)._is_wanted(ADDRESSES[ONE])
        await carrier(driver).prepare(lease(ONE, vm="vault"))
