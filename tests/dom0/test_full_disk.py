"""While the store's disk is full: failures are reported, and no old row harms a new attachment."""

from __future__ import annotations

import pytest
import trio
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.failing_store import FULL, full
from tests.dom0.fakes import World, fails


@pytest.mark.parametrize("vm", ["work", "vault"])
async def test_a_row_that_could_not_be_deleted_does_not_drop_the_next_attachment_of_the_device(
    local: World, autojump_clock: Clock, vm: str
) -> None:
    local.vm("vault")
    local.driver.change("vault", local.driver.infos["vault"].domid, "Running")
    await trio.sleep(1)
    for _ in range(4):  # the order of rows depends on random ids
        await local.client.attach("work", "sys-usb:sda")
        with full("journal_delete", "journal_state"):
            await local.client.detach("work", "sys-usb:sda")
        assert list(local.state.leases) == []
        assert [row.state for row in local.state.store.journal()] == ["attached"]
        await local.client.attach(vm, "sys-usb:sda")
        (lease,) = local.state.leases
        assert local.state.store.journal() == [lease]
        await local.restart()
        await trio.sleep(60)
        assert list(local.state.leases) == [lease]
        assert lease.attachment in local.driver.agents[vm].imports
        await local.client.detach(vm, "sys-usb:sda")


async def test_an_attach_is_refused_while_the_row_of_the_last_one_cannot_be_deleted(
    local: World, autojump_clock: Clock
) -> None:
    await local.client.attach("work", "sys-usb:sda")
    with full("journal_delete"):
        await local.client.detach("work", "sys-usb:sda")
        with fails("failed", FULL):
            await local.client.attach("work", "sys-usb:sda")
    assert list(local.state.leases) == []
    await local.client.attach("work", "sys-usb:sda")
    await local.client.detach("work", "sys-usb:sda")
    local.assert_nothing_left()


async def test_a_detach_that_cannot_unassign_says_that_it_has_detached(
    local: World, autojump_clock: Clock
) -> None:
    await local.client.attach("work", "sys-usb:sda", persistent=True)
    with (
        full("unassign"),
        fails("failed", "is detached from work, but still assigned to it: ", FULL, "detach work"),
    ):
        await local.client.detach("work", "sys-usb:sda")
    assert list(local.state.leases) == []
    (line,) = local.audit("detach")
    assert "detached from work, but still assigned" in line["outcome"]
    with full("unassign"), fails("failed", f"dom0.sqlite: {FULL}"):
        await local.client.detach("work", "sys-usb:sda")
    answer = await local.client.detach("work", "sys-usb:sda")
    assert answer["results"][0]["unassigned"]


async def test_all_at_once_too_each_item_says_what_was_done(
    local: World, autojump_clock: Clock
) -> None:
    await local.client.attach("work", "sys-usb:sda", persistent=True)
    with full("unassign"):
        answer = await local.client.call(
            "device.detach", device_class="block", vm="work", backend=None, device=None
        )
    (item,) = answer["results"]
    assert "is detached from work, but still assigned" in item["error"]["message"]


@pytest.mark.parametrize(
    ("event", "method"),
    [("attach", "journal_put"), ("detach", "unassign"), ("start", "start_put")],
)
async def test_the_audit_log_says_that_the_store_is_the_reason(
    local: World, autojump_clock: Clock, event: str, method: str
) -> None:
    local.vm("vault", running=False)
    await local.client.attach("vault", "sys-usb:sda", persistent=True)
    named = {"device_class": "block", "backend": "sys-usb", "device": "sda"}
    with full(method), pytest.raises(CallError, match=FULL):
        if event == "start":
            await local.client.call("vm.start", vm="vault")
        elif event == "attach":
            await local.client.attach("work", "sys-usb:sda")
        else:
            await local.client.call("device.detach", vm="vault", **named)
    line = local.audit(event)[-1]
    assert line["outcome"].startswith("failed: ")
    assert FULL in line["outcome"]
