"""Attaching and detaching block devices by xl, and what xenstore says of them."""

from __future__ import annotations

import functools
import math

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.xen import block as xen_block
from pedos_dom0.drivers.xen.block import attach_arguments
from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_dom0.drivers.xen.xenstore import SCRIPT
from pedos_dom0.tables.leases import Lease
from pedos_dom0.tables.registry import DeviceKey

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


def test_a_cdrom_is_called_so() -> None:
    lease = attrs.evolve(LEASE, options={"read-only": "yes", "devtype": "cdrom"})
    assert attach_arguments(lease, "xvdi")[2] == (
        f"format=raw,vdev=xvdi,access=ro,script={SCRIPT},devtype=cdrom,backend=2,target=/dev/sda1"
    )


def test_a_name_that_is_no_device_never_reaches_xl() -> None:
    bad = attrs.evolve(LEASE, key=DeviceKey("block", "sys-usb", "a,script=/tmp/x"))
    with pytest.raises(DriverError, match="cannot be the name of a block device"):
        attach_arguments(bad, "xvdi")


async def test_a_device_is_plugged_and_unplugged(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        assert not driver.carriers["block"].is_attached(LEASE)
        await driver.carriers["block"].attach(LEASE)
        assert driver.carriers["block"].is_attached(LEASE)
        await driver.carriers["block"].detach(LEASE, force=False)
        assert not driver.carriers["block"].is_attached(LEASE)
        assert [call[0] for call in host.calls()] == ["block-attach", "block-detach"]
        await driver.carriers["block"].detach(LEASE, force=False)
        assert len(host.calls()) == 2  # there was nothing left to take away


async def test_what_a_source_does_not_serve_is_an_error_and_taken_away(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "SETTLE_SECONDS", 0.2)
    host.create(5, "work")
    host.plan(block_attach={"status": ""})
    async with running(host) as driver:
        with pytest.raises(DriverError, match=r"sys-usb does not serve it$"):
            await driver.carriers["block"].attach(LEASE)
        await driver.carriers["block"].detach(LEASE, force=True)
        assert not driver.carriers["block"].is_attached(LEASE)


async def test_what_a_sources_script_says_against_it_is_passed_on_at_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "SETTLE_SECONDS", math.inf)
    host.create(5, "work")
    host.plan(block_attach={"status": "error", "error": "/dev/sda1 \x1b[2Jhas gone" + "!" * 4096})
    async with running(host) as driver:
        with pytest.raises(DriverError, match=r"; it says: /dev/sda1 _.2Jhas gone!") as refused:
            await driver.carriers["block"].attach(LEASE)
    assert len(str(refused.value)) < 500


async def test_a_vm_that_has_not_run_yet_is_not_asked_to_let_go(host: Host) -> None:
    host.configure("work")
    async with running(host) as driver:
        lease = attrs.evolve(LEASE, vm_domid=await driver.start("work"))
        await driver.carriers["block"].attach(lease)
        await driver.carriers["block"].detach(lease, force=True)
        assert not driver.carriers["block"].is_attached(lease)
        assert host.calls("block-detach") == [
            ["block-detach", "--force", str(lease.vm_domid), "xvdi"]
        ]


@pytest.mark.parametrize("how", [{"exit": 1}, {"killed": True}], ids=["failed", "killed"])
async def test_what_xl_leaves_when_it_ends_half_way_is_taken_away(
    host: Host, how: dict[str, int]
) -> None:
    says = "libxl: error: libxl_device.c:9:x: Domain 5:unable to add device\n"
    host.create(5, "work")
    host.plan(block_attach={"does": True, "says": says, **how})
    async with running(host) as driver:
        with pytest.raises(DriverError, match="it says: Domain 5:unable to add device"):
            await driver.carriers["block"].attach(LEASE)
        await driver.carriers["block"].detach(LEASE, force=True)
        assert not driver.carriers["block"].is_attached(LEASE)


async def test_a_refused_detach_is_told_and_the_device_stays(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        host.plan(block_detach={"exit": 1, "says": "libxl: error: a.c:1:b: timed out\n"})
        with pytest.raises(DriverError, match="work does not release sys-usb:sda1") as caught:
            await driver.carriers["block"].detach(LEASE, force=False)
        assert caught.value.code == "busy"
        assert driver.carriers["block"].is_attached(LEASE)


async def test_a_source_that_hangs_does_not_keep_what_the_target_let_go(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        host.plan(block_detach={"exit": 1})
        host.put("/local/domain/5/device/vbd/51840/state", "6")  # Closed
        await driver.carriers["block"].detach(LEASE, force=False)
        assert not driver.carriers["block"].is_attached(LEASE)
        assert host.calls("block-detach")[-1] == ["block-detach", "--force", "5", "xvdi"]


async def test_force_takes_it_all_the_same(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        host.plan(block_detach={"exit": 1})
        await driver.carriers["block"].detach(LEASE, force=True)
        assert not driver.carriers["block"].is_attached(LEASE)
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
    # An administrator has attached another one, after ours had gone.
    host.lend(NODE, backend, script)
    host.create(5, "work")
    async with running(host) as driver:
        assert not driver.carriers["block"].is_attached(LEASE)
        await driver.carriers["block"].detach(LEASE, force=True)
        assert host.calls() == []


async def test_names_that_the_domain_has_are_not_given_out(host: Host) -> None:
    host.put(f"{NODE}/backend", "/local/domain/0/backend/vbd/5/51840")
    async with running(host) as driver:
        assert driver.carriers["block"].name_in_target(5, None, {"xvdj"}) == "xvdk"
        assert driver.carriers["block"].name_in_target(5, "xvdz", {"xvdj"}) == "xvdz"
        with pytest.raises(DriverError, match="xvdi is already used") as caught:
            driver.carriers["block"].name_in_target(5, "xvdi", set())
        assert caught.value.code == "busy"


async def test_what_a_domain_has_that_ended_is_attached_until_the_toolstack_took_it_down(
    host: Host,
) -> None:
    host.create(5, "work")
    async with running(host) as driver, trio.open_nursery() as nursery:
        await driver.carriers["block"].attach(LEASE)
        await ends_uncleared(host, driver)
        nursery.start_soon(functools.partial(driver.carriers["block"].detach, LEASE, force=True))
        await until_watched(host, NODE)
        assert driver.carriers["block"].is_attached(LEASE)
        assert nursery.child_tasks
        host.clear(5)
    assert host.calls("block-detach") == []


async def test_what_a_domain_keeps_that_nobody_clears_away_is_taken_by_force(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_block, "SETTLE_SECONDS", 0.1)
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        await ends_uncleared(host, driver)
        await driver.carriers["block"].detach(LEASE, force=False)
        assert not driver.carriers["block"].is_attached(LEASE)
        assert host.calls("block-detach") == [["block-detach", "--force", "5", "xvdi"]]


async def test_a_domain_that_is_suspended_keeps_what_it_has(host: Host) -> None:
    host.create(5, "work")
    async with running(host) as driver:
        await driver.carriers["block"].attach(LEASE)
        host.flag(5, "---ss-")
        host.fire("@releaseDomain")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert driver.domains()["work"].domid == 5
        assert driver.carriers["block"].is_attached(LEASE)
        assert host.calls("block-detach") == []


async def ends_uncleared(host: Host, driver: XenDriver) -> None:
    """Domain 5 has ended, and no program has detached what it had."""
    host.flag(5, "---s--")
    host.fire("@releaseDomain")
    await until(driver, "work", None)


async def until_watched(host: Host, path: str) -> None:
    while not any(path in store.watched for store in host.stores):
        await trio.testing.wait_all_tasks_blocked()
