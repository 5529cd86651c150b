"""Devices of ours that a domain has without a lease: after a reboot, a soft reset, or a killed
service."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.drivers.base import DomainInfo, DriverError
from pedos_dom0.drivers.xen import reclaim
from pedos_dom0.drivers.xen.driver import XenDriver, vchan
from pedos_dom0.drivers.xen.xenstore import SCRIPT

from tests.dom0.test_xen_driver import host, running, until
from tests.dom0.test_xen_driver_block import BACKEND, LEASE, NODE, ends_uncleared
from tests.dom0.xen_host import Host

__all__ = ["host"]  # the fixture

# The same in the domain that follows, and in another one.
LEASE_6 = attrs.evolve(LEASE, vm_domid=6)
BACKEND_6 = "/local/domain/2/backend/vbd/6/51840"
NODE_6 = "/libxl/6/device/vbd/51840"
ANOTHERS = attrs.evolve(LEASE, vm="personal", vm_domid=9)
FORCED = ["block-detach", "--force", "6", "xvdi"]


async def settled(driver: XenDriver) -> None:
    """Nothing is on its way to a domain any more, nor being taken away."""
    while driver._block.reclaimer._settling:
        await trio.testing.wait_all_tasks_blocked()


async def ends(host: Host, driver: XenDriver) -> None:
    """Domain 5 had a lease."""
    host.destroy(5)
    await until(driver, "work", None)
    await driver.carriers["block"].detach(LEASE, force=True)


async def reboots(host: Host, driver: XenDriver) -> None:
    """Domain 5 had a lease, and domain 6 is being made."""
    await ends(host, driver)
    host.create(6, "work", made=False)
    await until(driver, "work", DomainInfo("work", 6, "Running"))


@pytest.mark.parametrize("in_time", [False, True])
async def test_a_vm_that_reboots_does_not_keep_what_it_had(host: Host, in_time: bool) -> None:
    # The toolstack remembers what was attached, and gives it to the next domain; perhaps also what
    # was taken from a domain that was about to end.
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        if in_time:
            await driver.carriers["block"].detach(LEASE, force=True)
        before = host.calls("block-detach")
        assert before == [["block-detach", "5", "xvdi"]] * in_time
        await reboots(host, driver)
        host.lend(NODE_6, BACKEND_6, SCRIPT)
        host.made(6)
        await settled(driver)
        assert host.calls("block-detach") == [*before, FORCED]
        assert not driver.carriers["block"].is_attached(LEASE_6)


async def test_a_domain_that_is_being_made_is_left_alone(host: Host) -> None:
    # The toolstack would give up the whole domain, and the VM would not come back.
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        host.lend(NODE_6, BACKEND_6, SCRIPT)
        host.fire(NODE_6)
        await trio.testing.wait_all_tasks_blocked()
        assert host.calls("block-detach") == []


async def test_where_the_toolstack_leaves_no_trace_the_agent_says_that_it_is_made(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*_: object) -> object:
        return object()

    monkeypatch.setattr(vchan, "connect_when_there", connect)
    monkeypatch.setattr("pedos_dom0.drivers.xen.driver.VchanStream", lambda channel: channel)
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        host.lend(NODE_6, BACKEND_6, SCRIPT)
        await driver.connect_control("work", 6)
        await settled(driver)
        assert host.calls("block-detach") == [FORCED]


async def test_what_a_service_that_was_killed_has_left_is_taken_away(host: Host) -> None:
    host.create(5, "work")
    host.lend(NODE, BACKEND, SCRIPT)
    host.create(6, "work")
    host.lend(NODE_6, BACKEND_6, SCRIPT)
    async with running(host, LEASE) as driver:
        await settled(driver)
        assert host.calls("block-detach") == [FORCED]
        assert driver.carriers["block"].is_attached(LEASE), "it stands in the journal"


async def test_what_an_administrator_attached_is_not_ours(host: Host) -> None:
    host.create(6, "work")
    host.lend(NODE_6, BACKEND_6, "/etc/xen/scripts/block")
    async with running(host) as driver:
        await settled(driver)
        assert host.calls() == []


@pytest.mark.parametrize(("device", "refused"), [("sda1", True), ("sda", True), ("sdb1", False)])
async def test_nobody_else_gets_what_a_vm_may_come_back_with(
    host: Host, device: str, refused: bool
) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    asked = attrs.evolve(ANOTHERS, key=attrs.evolve(LEASE.key, device=device))
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        if refused:
            with pytest.raises(DriverError, match="work had sys-usb:sda1 and is just") as caught:
                await driver.carriers["block"].attach(asked)
            assert caught.value.code == "busy"
            assert not driver.carriers["block"].is_attached(asked)
            host.made(6)
            await settled(driver)
        await driver.carriers["block"].attach(asked)
        assert driver.carriers["block"].is_attached(asked)


async def test_others_get_what_a_vm_had_that_dies_while_it_is_made(host: Host) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        host.destroy(6)
        await until(driver, "work", None)
        await driver.carriers["block"].attach(ANOTHERS)
        assert driver.carriers["block"].is_attached(ANOTHERS)


@pytest.mark.parametrize(
    ("had", "wanted", "related"),
    [
        ("sda", "sda", True),
        ("sda", "sda1", True),
        ("sda12", "sda", True),
        ("nvme0n1p2", "nvme0n1", True),
        ("sda", "sdaa", False),
        ("sda1", "sda10", False),
        ("loop1", "loop10", False),
        ("loop1", "loop1p1", True),
        ("dm-1", "dm-12", False),
    ],
)
async def test_only_what_shares_data_with_it_waits_for_a_reboot(
    host: Host, had: str, wanted: str, related: bool
) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    lease, other = (
        attrs.evolve(one, key=attrs.evolve(one.key, device=device))
        for one, device in ((LEASE, had), (ANOTHERS, wanted))
    )
    async with running(host) as driver:
        await driver.carriers["block"].attach(lease)
        host.destroy(5)
        await until(driver, "work", None)
        await driver.carriers["block"].detach(lease, force=True)
        host.create(6, "work", made=False)
        await until(driver, "work", DomainInfo("work", 6, "Running"))
        if related:
            with pytest.raises(DriverError, match="just rebooting"):
                await driver.carriers["block"].attach(other)
        else:
            await driver.carriers["block"].attach(other)
            assert driver.carriers["block"].is_attached(other)


async def test_what_was_refused_to_a_vm_is_nothing_that_it_had(host: Host) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        with pytest.raises(DriverError, match="just rebooting"):
            await driver.carriers["block"].attach(ANOTHERS)
        await driver.carriers["block"].detach(ANOTHERS, force=True)  # like an attach that failed
        host.made(6)
        await settled(driver)
        host.destroy(9)
        host.create(10, "personal", made=False)
        await until(driver, "personal", DomainInfo("personal", 10, "Running"))
        await driver.carriers["block"].attach(LEASE_6)
        assert driver.carriers["block"].is_attached(LEASE_6)


async def test_what_is_granted_after_a_reboot_stays(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        await driver.carriers["block"].attach(LEASE_6)
        host.made(6)
        await settled(driver)
        assert driver.carriers["block"].is_attached(LEASE_6)
        assert host.calls("block-detach") == []


async def test_a_detach_that_was_refused_leaves_it_given(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        host.plan(block_detach={"exit": 1})
        with pytest.raises(DriverError):
            await driver.carriers["block"].detach(LEASE, force=False)
        assert (5, "xvdi") in driver._block._given
        await driver.carriers["block"].detach(LEASE, force=True)
        assert not driver._block._given


@pytest.mark.parametrize("late", [False, True])
async def test_a_domain_that_comes_back_with_its_number_keeps_nothing(
    host: Host, late: bool
) -> None:
    """A soft reset: it was made long ago, and is given what it had after it came back."""
    host.create(5, "work")
    async with running(host) as driver:
        driver._block.reclaimer.complete(5)  # its agent had connected
        await driver.carriers["block"].attach(LEASE)
        await ends_uncleared(host, driver)
        host.clear(5)
        if not late:
            await driver.carriers["block"].detach(LEASE, force=True)
        host.flag(5, "r-----")
        host.fire("@introduceDomain")
        await until(driver, "work", DomainInfo("work", 5, "Running"))
        await trio.testing.wait_all_tasks_blocked()
        if late:
            await driver.carriers["block"].detach(LEASE, force=True)
        host.lend(NODE, BACKEND, SCRIPT)
        driver._block.reclaimer.complete(5)  # and connects again
        await settled(driver)
        assert host.calls("block-detach") == [["block-detach", "--force", "5", "xvdi"]]


async def test_it_is_tried_again_until_it_is_gone_and_refused_to_others_meanwhile(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "RETRY_SECONDS", 0.0)
    host.create(9, "personal")
    async with running(host) as driver:
        tried = []

        async def run(*arguments: str, **_: object) -> str:
            if arguments == ("list",):
                return ""
            tried.append(list(arguments))
            with pytest.raises(DriverError, match="domain 6 has sda1 of domain 2 without a lease"):
                driver._block.reclaimer.refuse(ANOTHERS)
            if len(tried) == 3:
                host.clear(6)
                return ""
            raise DriverError("xl hangs", code="timeout")

        monkeypatch.setattr(driver._block._xl, "run", run)
        host.lend(NODE_6, BACKEND_6, SCRIPT)
        host.create(6, "work")
        await until(driver, "work", DomainInfo("work", 6, "Running"))
        await settled(driver)
        assert tried == [FORCED] * 3
        driver._block.reclaimer.refuse(ANOTHERS)


async def test_what_was_taken_from_a_vm_long_ago_is_forgotten(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "REMEMBERED_SECONDS", 0.0)
    host.create(5, "work")
    host.create(9, "personal")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await reboots(host, driver)
        await driver.carriers["block"].attach(ANOTHERS)
        assert driver.carriers["block"].is_attached(ANOTHERS)


async def test_a_vm_that_is_started_by_us_has_nothing_left_over(host: Host) -> None:
    host.create(5, "work")
    host.create(9, "personal")
    host.configure("work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        host.destroy(5)
        await until(driver, "work", DomainInfo("work", None, "Halted"))
        await driver.carriers["block"].detach(LEASE, force=True)
        await driver.start("work")
        await settled(driver)
        await driver.carriers["block"].attach(ANOTHERS)
        assert host.calls("block-detach") == []
