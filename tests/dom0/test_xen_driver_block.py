"""Attaching and detaching block devices by xl, and what xenstore says of them."""

from __future__ import annotations

import functools

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.drivers import xen_block
from pedos_dom0.drivers.base import DomainInfo, DriverError
from pedos_dom0.drivers.xen import XenDriver
from pedos_dom0.drivers.xen_block import SCRIPT, attach_arguments
from pedos_dom0.leases import Lease
from pedos_dom0.registry import DeviceKey
from pedos_vchan.folder_watch import FolderWatch

from tests.dom0.test_xen_driver import host, running, until
from tests.dom0.xen_host import Host

__all__ = ["host"]  # the fixture

LEASE = Lease(
    attachment="00112233aabbccdd",
    key=DeviceKey("block", "sys-usb", "sda1"),
    vm="work",
    options={"read-only": "no"},
    frontend="xvdi",
    port=16,
    backend_domid=2,
    vm_domid=5,
    state="pending",
)
BACKEND = "/local/domain/2/backend/vbd/5/51840"
NODE = "/libxl/5/device/vbd/51840"
# The same in the domain that follows.
BACKEND_6 = "/local/domain/2/backend/vbd/6/51840"
NODE_6 = "/libxl/6/device/vbd/51840"


def test_the_words_of_an_attach() -> None:
    # xl-disk-configuration(5): `target=` takes all that follows, so it is the last.
    assert attach_arguments(LEASE, "xvdi") == [
        "block-attach",
        "5",
        f"format=raw,vdev=xvdi,access=rw,script={SCRIPT},backend=2,target=/dev/sda1",
    ]


def test_a_read_only_disk_of_dom0() -> None:
    lease = attrs.evolve(LEASE, backend_domid=0, options={"read-only": "yes"})
    assert attach_arguments(lease, "xvdi")[2] == (
        f"format=raw,vdev=xvdi,access=ro,script={SCRIPT},target=/dev/sda1"
    )


def test_a_name_that_is_no_device_never_reaches_xl() -> None:
    bad = attrs.evolve(LEASE, key=DeviceKey("block", "sys-usb", "a,script=/tmp/x"))
    with pytest.raises(DriverError, match="cannot be the name of a block device"):
        attach_arguments(bad, "xvdi")


async def test_a_device_is_plugged_and_unplugged(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        assert not driver.is_plugged(LEASE)
        await driver.plug(LEASE)
        assert driver.is_plugged(LEASE)
        await driver.unplug(LEASE, force=False)
        assert not driver.is_plugged(LEASE)
        assert [call[0] for call in host.calls()] == ["block-attach", "block-detach"]
        await driver.unplug(LEASE, force=False)
        assert len(host.calls()) == 2  # there was nothing left to take away


async def test_what_a_source_does_not_serve_is_an_error_and_taken_away(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "SETTLE_SECONDS", 0.2)
    host.create(5, "work")
    host.plan(block_attach={"status": "error"})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="sys-usb does not serve it"):
            await driver.plug(LEASE)
        await driver.unplug(LEASE, force=True)
        assert not driver.is_plugged(LEASE)


async def test_what_xl_leaves_when_it_fails_half_way_is_taken_away(host: Host) -> None:
    says = "libxl: error: libxl_device.c:9:x: Domain 5:unable to add device\n"
    host.create(5, "work")
    host.plan(block_attach={"does": True, "exit": 1, "says": says})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="it says: Domain 5:unable to add device"):
            await driver.plug(LEASE)
        await driver.unplug(LEASE, force=True)
        assert not driver.is_plugged(LEASE)


async def test_a_refused_detach_is_told_and_the_device_stays(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        host.plan(block_detach={"exit": 1, "says": "libxl: error: a.c:1:b: timed out\n"})
        with pytest.raises(DriverError, match="work does not let go of sys-usb:sda1") as caught:
            await driver.unplug(LEASE, force=False)
        assert caught.value.code == "busy"
        assert driver.is_plugged(LEASE)


async def test_force_takes_it_all_the_same(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        host.plan(block_detach={"exit": 1})
        await driver.unplug(LEASE, force=True)
        assert not driver.is_plugged(LEASE)
        assert host.calls("block-detach") == [
            ["block-detach", "5", "xvdi"],
            ["block-detach", "--force", "5", "xvdi"],
        ]


@pytest.mark.parametrize(
    ("backend", "script"),
    [("/local/domain/0/backend/vbd/5/51840", SCRIPT), (BACKEND, "/etc/xen/scripts/block")],
    ids=["another", "the same by hand"],
)
async def test_another_device_under_the_name_is_left_alone(
    host: Host, backend: str, script: str
) -> None:
    # An administrator has put his own there, after ours had gone.
    host.lend(NODE, backend, script)
    host.create(5, "work")
    async with running(host) as driver:
        assert not driver.is_plugged(LEASE)
        await driver.unplug(LEASE, force=True)
        assert host.calls() == []


async def test_names_that_the_domain_has_are_not_given_out(host: Host) -> None:
    host.put(f"{NODE}/backend", "/local/domain/0/backend/vbd/5/51840")
    async with running(host) as driver:
        assert driver.free_frontend(5, None, {"xvdj"}) == "xvdk"
        assert driver.free_frontend(5, "xvdz", {"xvdj"}) == "xvdz"
        with pytest.raises(DriverError, match="xvdi is already used") as caught:
            driver.free_frontend(5, "xvdi", set())
        assert caught.value.code == "busy"


@pytest.mark.parametrize("in_time", [False, True])
async def test_a_vm_that_reboots_does_not_keep_what_it_had(host: Host, in_time: bool) -> None:
    # The toolstack remembers what was attached, and gives it to the next domain; perhaps also what
    # was taken from a domain that was about to end.
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        if in_time:
            await driver.unplug(LEASE, force=True)
        host.destroy(5)
        await until(driver, "work", None)
        if not in_time:
            await driver.unplug(LEASE, force=True)
        before = host.calls("block-detach")
        assert before == [["block-detach", "5", "xvdi"]] * in_time
        host.create(6, "work")
        await until(driver, "work", DomainInfo("work", 6, "Running"))
        await until_watched(host, NODE_6)
        await gives_again(host, driver)
        assert host.calls("block-detach") == [*before, ["block-detach", "--force", "6", "xvdi"]]


async def reboots(host: Host, driver: XenDriver) -> None:
    """Domain 5 has a lease and ends, domain 6 follows; returns when it may be given the device."""
    host.destroy(5)
    await until(driver, "work", None)
    await driver.unplug(LEASE, force=True)
    host.create(6, "work")
    await until(driver, "work", DomainInfo("work", 6, "Running"))
    await until_watched(host, NODE_6)


async def gives_again(host: Host, driver: XenDriver) -> None:
    """The toolstack gives domain 6 what domain 5 had; returns when that is taken away."""
    host.lend(NODE_6, BACKEND_6, SCRIPT)
    host.fire(NODE_6)
    await until_unplugged(host, driver, attrs.evolve(LEASE, vm_domid=6))


async def test_a_vm_that_rebooted_while_the_service_was_down_keeps_nothing(host: Host) -> None:
    host.create(6, "work")
    async with running(host) as driver:
        await driver.unplug(LEASE, force=True)  # its journal says that domain 5 has it
        await until_watched(host, NODE_6)
        await gives_again(host, driver)
        assert host.calls("block-detach") == [["block-detach", "--force", "6", "xvdi"]]


@pytest.mark.parametrize(("device", "refused"), [("sda1", True), ("sda", True), ("sdb1", False)])
async def test_nobody_else_gets_what_a_vm_may_come_back_with(
    host: Host, device: str, refused: bool
) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    asked = attrs.evolve(
        LEASE, vm="personal", vm_domid=9, key=attrs.evolve(LEASE.key, device=device)
    )
    async with running(host) as driver:
        await driver.plug(LEASE)
        await reboots(host, driver)
        if refused:
            with pytest.raises(DriverError, match="work had sys-usb:sda1 and is just") as caught:
                await driver.plug(asked)
            assert caught.value.code == "busy"
            assert not driver.is_plugged(asked)
            driver._block.complete(6)  # its agent has connected
            await settled(host)
        await driver.plug(asked)
        assert driver.is_plugged(asked)


async def test_others_get_what_a_vm_had_that_dies_while_it_boots(host: Host) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    asked = attrs.evolve(LEASE, vm="personal", vm_domid=9)
    async with running(host) as driver:
        await driver.plug(LEASE)
        await reboots(host, driver)
        host.destroy(6)
        await settled(host)
        await driver.plug(asked)
        assert driver.is_plugged(asked)


async def test_what_is_granted_after_a_reboot_stays(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        await reboots(host, driver)
        again = attrs.evolve(LEASE, vm_domid=6)
        await driver.plug(again)
        host.fire(NODE_6)
        await settled(host)
        assert driver.is_plugged(again)
        assert host.calls("block-detach") == []


async def test_what_a_domain_has_that_ended_is_attached_until_the_toolstack_took_it_down(
    host: Host,
) -> None:
    host.create(5, "work")
    async with running(host) as driver, trio.open_nursery() as nursery:
        await driver.plug(LEASE)
        await ends_uncleared(host, driver)
        nursery.start_soon(functools.partial(driver.unplug, LEASE, force=True))
        await until_watched(host, NODE)
        assert driver.is_plugged(LEASE)
        assert nursery.child_tasks
        host.clear(5)
    assert host.calls("block-detach") == []


async def test_what_a_domain_keeps_that_nobody_clears_away_is_taken_by_force(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "SETTLE_SECONDS", 0.1)
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        await ends_uncleared(host, driver)  # a guest may say of itself that it is suspended
        await driver.unplug(LEASE, force=False)
        assert not driver.is_plugged(LEASE)
        assert host.calls("block-detach") == [["block-detach", "--force", "5", "xvdi"]]


async def test_a_domain_that_comes_back_with_its_number_keeps_nothing(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        await ends_uncleared(host, driver)  # a soft reset
        host.clear(5)
        await driver.unplug(LEASE, force=True)
        assert not driver.is_plugged(LEASE)
        host.flag(5, "r-----")
        host.lend(NODE, BACKEND, SCRIPT)
        host.fire("@introduceDomain", NODE)
        await until(driver, "work", DomainInfo("work", 5, "Running"))
        await until_unplugged(host, driver, LEASE)
        assert host.calls("block-detach") == [["block-detach", "--force", "5", "xvdi"]]


async def test_what_a_vm_came_back_with_is_tried_again_until_it_is_gone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "AGAIN_SECONDS", 0.0)
    host.create(6, "work")
    async with running(host) as driver:
        tried = []

        async def run(*arguments: str, **_: object) -> str:
            tried.append(arguments)
            if len(tried) == 3:
                host.clear(6)
                return ""
            raise DriverError("xl hangs", code="timeout")

        monkeypatch.setattr(driver._block._xl, "run", run)
        host.lend(NODE_6, BACKEND_6, SCRIPT)
        await driver._block.clear_remembered(attrs.evolve(LEASE, vm_domid=6))
        assert tried == [("block-detach", "--force", "6", "xvdi")] * 3


async def test_what_was_taken_from_a_vm_long_ago_is_forgotten(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "REMEMBERED_SECONDS", 0.0)
    host.create(5, "work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        await driver.unplug(LEASE, force=True)
        assert driver._block.domain_came("work", 6) == []


async def test_a_vm_that_is_started_by_us_has_nothing_left_over(host: Host) -> None:
    host.create(5, "work")
    host.configure("work")
    async with running(host) as driver:
        await driver.plug(LEASE)
        host.destroy(5)
        await until(driver, "work", DomainInfo("work", None, "Halted"))
        await driver.unplug(LEASE, force=True)
        domid = await driver.start("work")
        # Nothing is waited for: the device is free, for others also.
        await settled(host)
        assert not driver._block._awaited
        again = attrs.evolve(LEASE, vm_domid=domid)
        await driver.plug(again)
        host.fire(NODE.replace("5", str(domid), 1))
        await settled(host)
        assert driver.is_plugged(again)
        assert host.calls("block-detach") == []


async def ends_uncleared(host: Host, driver: XenDriver) -> None:
    """Domain 5 has ended, and nobody has taken down what it had."""
    host.flag(5, "---s--")
    host.fire("@releaseDomain")
    await until(driver, "work", None)


async def until_unplugged(host: Host, driver: XenDriver, lease: Lease) -> None:
    with FolderWatch([host.root / "news"]) as watch:
        while driver.is_plugged(lease):
            await watch.changed()


async def settled(host: Host) -> None:
    """Nobody waits for a node below /libxl any more: everything that is to come has come."""
    while any(path.startswith("/libxl") for store in host.stores for path in store.watched):
        await trio.testing.wait_all_tasks_blocked()


async def until_watched(host: Host, path: str) -> None:
    while not any(path in store.watched for store in host.stores):
        await trio.testing.wait_all_tasks_blocked()
