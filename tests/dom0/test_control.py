"""Control connections: what a VM may do to one, without any other VM noticing."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.audit.throttle import THROTTLE_AFTER
from pedos_dom0.connections.agent_session import SharedParts
from pedos_dom0.connections.agent_sessions import AgentSessions
from pedos_dom0.drivers.base import HypervisorLost
from pedos_protocol.codec import encode
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import World, fails

HELLO = encode([2, "hello", {"versions": [1, 1], "program": "fake"}])
REPORT = {"revision": 1, "devices": [], "exports": [], "imports": []}


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.dom0_agent("disk")
    yield world
    await world.kill()


def request(params: object, method: str = "agent.report") -> bytes:
    return encode([0, 1, method, {**params, "deadline_ms": 5000}])  # type: ignore[dict-item]


def device(**fields: Any) -> dict[str, Any]:
    plain = {
        "device_class": "block",
        "device": "sda",
        "identity": "",
        "description": "",
        "size": None,
        "parent": None,
        "read_only": False,
        "busy": None,
    }
    return {**plain, **fields}


HOSTILE = {
    "garbage": b"\x07\x00\x00\x00garbage",
    "an oversized frame": b"\xff\xff\xff\x7f",
    "no hello": request(REPORT),
    "a wrong version": encode([2, "hello", {"versions": [9, 9], "program": "fake"}]),
    "hello twice": HELLO + HELLO,
    "an answer to nothing": HELLO + encode([1, 5, None, {}]),
    "a report with a key too many": HELLO + request({**REPORT, "domid": 0}),
    "a report without devices": HELLO + request({"revision": 1}),
    "a device with a bad name": HELLO
    + request({**REPORT, "devices": [device(device="../../etc/passwd")]}),
    "too many devices": HELLO
    + request({**REPORT, "devices": [device(device=f"d{n}") for n in range(129)]}),
    "a device of no class": HELLO + request({**REPORT, "devices": [device(device_class="TPM")]}),
    "a flood": HELLO + encode([2, "attachment.none", {}]) * 20000,
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_vm_that_breaks_the_protocol_is_disconnected_and_nobody_else_notices(
    world: World, autojump_clock: Clock, what: str
) -> None:
    async def misbehave(stream: trio.abc.Stream) -> None:
        try:
            await stream.send_all(HOSTILE[what])
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass

    world.driver.agents["work"].misbehave = misbehave
    await world.start()
    (gone,) = world.audit("disconnected")
    assert (gone["vm"], gone["wait_s"]) == ("work", 1)
    status = await world.client.call("service.status")
    assert status["agents"] == ["dom0", "sys-usb"]
    assert len(await world.client.list()) == 2


async def test_breaking_the_protocol_again_doubles_the_wait_up_to_half_a_minute(
    world: World, autojump_clock: Clock
) -> None:
    async def misbehave(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"\xff\xff\xff\xff")

    world.driver.agents["work"].misbehave = misbehave
    await world.start()
    await trio.sleep(100)
    waits = [record["wait_s"] for record in world.audit("disconnected")]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30][: len(waits)] and len(waits) >= 6


async def test_a_minute_of_good_behaviour_is_rewarded(world: World, autojump_clock: Clock) -> None:
    await world.start()
    agent = world.driver.agents["work"]
    for pause in (0, 1, 70):
        await trio.sleep(pause)
        assert agent.peer is not None
        await agent.peer.notify("attachment.ended", {"attachment": "bad"})
        await trio.sleep(3)
    assert [record["wait_s"] for record in world.audit("disconnected")] == [1, 2, 1]


async def test_an_agent_that_keeps_its_report_back_is_disconnected(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["work"].greets = False
    await world.start()
    await trio.sleep(5.1)
    (gone,) = world.audit("disconnected")
    assert gone["reason"] == "no report came within 5 s of hello"


async def test_an_agent_that_never_says_hello_is_disconnected(
    world: World, autojump_clock: Clock
) -> None:
    async def silent(_stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    world.driver.agents["work"].misbehave = silent
    await world.start()
    await trio.sleep(5.1)
    (gone,) = world.audit("disconnected")
    assert "hello" in gone["reason"]


async def test_a_vm_cannot_end_what_it_has_no_part_in(world: World, autojump_clock: Clock) -> None:
    world.vm("vault")
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    (lease,) = world.state.leases
    for vm, side in (("vault", "import"), ("vault", "export"), ("work", "export")):
        await world.driver.agents[vm].ended(lease.attachment, side)
        await trio.sleep(0.5)
        assert world.audit("disconnected")[-1]["vm"] == vm
        if vm == "vault":
            assert world.state.leases.get(lease.attachment) is not None
        await trio.sleep(3)


async def test_an_agent_that_disconnects_politely_is_reconnected_at_once(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    agent = world.driver.agents["sys-usb"]
    agent.kill()
    await trio.sleep(0.1)
    assert agent.connections == 2
    (gone,) = world.audit("disconnected")
    assert (gone["vm"], gone["broke"], gone["reason"]) == (
        "sys-usb",
        False,
        "it closed the connection",
    )
    assert len(await world.client.list()) == 2


async def test_an_agent_that_comes_late_is_found(world: World, autojump_clock: Clock) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.listens = False
    await world.start()
    await trio.sleep(20)
    agent.listens = True
    await trio.sleep(0.6)
    assert world.state.agents.get("sys-usb") is not None


async def test_an_older_report_does_not_replace_a_newer_one(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    agent = world.driver.agents["sys-usb"]
    agent.plug("newer")
    agent.revision = 10
    await agent.report()
    del agent.devices["newer"]
    agent.revision = 4
    await agent.report()
    assert [item["device"] for item in await world.client.list()] == ["disk", "newer", "stick"]


async def test_a_vm_that_is_started_again_is_another_domain(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    first = world.state.agents.get("sys-usb")
    world.driver.die("sys-usb")
    await trio.testing.wait_all_tasks_blocked()
    assert [item["backend"] for item in await world.client.list()] == ["dom0"]
    await world.driver.start("sys-usb")
    await trio.testing.wait_all_tasks_blocked()
    second = world.state.agents.get("sys-usb")
    assert first is not None and second is not None
    assert first.domid != second.domid
    with fails("unavailable"):
        await first.call("export.stop", {"attachment": "0" * 16}, timeout=1)


async def test_device_text_of_a_vm_is_harmless_when_it_is_shown(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["work"].plug("x", description="\x1b[31m<b>\u202eevil" + "A" * 10_000)
    await world.start()
    (found,) = [item for item in await world.client.list() if item["backend"] == "work"]
    assert found["description"].isascii() and found["description"].isprintable()
    assert len(found["description"]) <= 128
    assert not set(found["description"]) & set('<>&"\\`')


async def test_a_vm_with_many_long_devices_shortens_its_own_list_only(
    world: World, autojump_clock: Clock
) -> None:
    for number in range(128):
        text = {"description": "D" * 128, "identity": "i" * 128}
        world.driver.agents["work"].plug(f"{'d' * 60}{number}", **text)
    await world.start()
    devices = await world.client.list()
    assert {"sys-usb", "dom0"} <= {item["backend"] for item in devices}
    assert len(devices) < 130


async def test_a_vm_that_floods_with_costly_requests_is_disconnected(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    listing = {"device_class": "block", "vms": None, "exclude": [], "deadline_ms": 600_000}

    async def flood(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(HELLO + request(REPORT))
            for number in range(2, 300):
                await stream.send_all(encode([0, number, "device.list", listing]))
            while await stream.receive_some():
                pass

    world.driver.agents["work"].misbehave = flood
    world.driver.agents["work"].kill()
    await trio.sleep(0.1)
    _killed, gone = world.audit("disconnected")
    assert "in flight" in gone["reason"] and gone["broke"]


async def test_an_honest_agent_with_a_hundred_changes_stays_connected(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    agent = world.driver.agents["sys-usb"]
    for number in range(100):
        agent.plug(f"disk{number}")
        await agent.report()
    assert world.audit("disconnected") == []
    assert len(await world.client.list()) == 102


async def test_a_vm_cannot_have_more_than_eight_operations_running(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.block * work work allow\n")
    agent = world.driver.agents["work"]
    for number in range(12):
        world.driver.agents["sys-usb"].plug(f"stick{number}")

    async def slow(_params: Any) -> None:
        await trio.sleep(1)

    agent.on["import.start"] = slow
    await world.start()
    codes: list[str] = []

    async def ask(number: int) -> None:
        try:
            await agent.ask(
                "device.attach",
                device_class="block",
                vm="work",
                backend="sys-usb",
                device=f"stick{number}",
            )
            codes.append("attached")
        except CallError as error:
            codes.append(error.code)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(ask, number)
    assert codes.count("quota") == 4


# How connections end, and what the audit log has


async def test_an_agent_that_dies_half_way_is_written_down(
    world: World, autojump_clock: Clock
) -> None:
    async def die(stream: trio.abc.Stream) -> None:
        await stream.send_all(HELLO + request(REPORT))
        await stream.receive_some()
        await stream.aclose()

    world.driver.agents["work"].misbehave = die
    await world.start()
    gone = world.audit("disconnected")[0]
    assert (gone["vm"], gone["broke"]) == ("work", False)


async def test_the_end_of_a_vm_is_written_down(world: World, autojump_clock: Clock) -> None:
    await world.start()
    world.driver.change("work", None, "Halted")
    await trio.testing.wait_all_tasks_blocked()
    (gone,) = world.audit("disconnected")
    assert (gone["vm"], gone["reason"], gone["broke"]) == ("work", "the VM ended", False)


async def test_garbage_in_the_handshake_of_the_channel_is_a_breach(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["work"].handshake = ConnectionError("it is not a sealed ring")
    await world.start()
    await trio.sleep(10)
    gone = world.audit("disconnected")
    assert [record["wait_s"] for record in gone] == [1, 2, 4, 8]
    assert all(record["broke"] and "sealed" in record["reason"] for record in gone)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no such file"), OSError(24, "too many open files")]
)
async def test_an_agent_that_is_not_there_is_no_breach_and_said_once(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture, error: OSError
) -> None:
    caplog.set_level("INFO")
    world.driver.agents["work"].handshake = error
    await world.start()
    await trio.sleep(10)
    assert world.audit("disconnected") == []
    said = [text for text in caplog.messages if text.startswith("no connection to work")]
    assert len(said) == 1 and error.strerror in said[0]
    world.driver.agents["work"].handshake = ConnectionRefusedError(111, "refused")
    await trio.sleep(10)
    said = [text for text in caplog.messages if text.startswith("no connection to work")]
    assert len(said) == 2 and "refused" in said[1]


async def test_a_vm_that_hangs_up_all_the_time_does_not_fill_the_audit_log(
    world: World, autojump_clock: Clock
) -> None:
    async def hang_up(stream: trio.abc.Stream) -> None:
        await stream.aclose()

    world.driver.agents["work"].misbehave = hang_up
    await world.start()
    await trio.sleep(600)
    assert world.driver.agents["work"].connections > 1000
    lines = world.audit("disconnected") + world.audit("summed_up")
    assert len(lines) < THROTTLE_AFTER + 15
    summed = sum(line["events"]["disconnected"] for line in world.audit("summed_up"))
    whole = len(world.audit("disconnected"))
    assert summed + whole > world.driver.agents["work"].connections - 200


async def test_attachments_that_an_agent_invents_are_a_breach(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    agent = world.driver.agents["work"]
    agent.invent_exports(64)
    with contextlib.suppress(CallError):
        await agent.report()
    await trio.testing.wait_all_tasks_blocked()
    (gone,) = world.audit("disconnected")
    assert gone["broke"] and "it reports attachments (64)" in gone["reason"]
    assert world.audit("leftovers") == []


async def test_a_report_that_is_late_is_no_breach(world: World, autojump_clock: Clock) -> None:
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    source = world.driver.agents["sys-usb"]
    (export,) = source.exports.values()
    await world.client.detach("work", "sys-usb:stick")
    source.exports[export["attachment"]] = export  # as it was when the report was written
    await source.report()
    await trio.testing.wait_all_tasks_blocked()
    assert world.audit("disconnected") == []
    assert source.exports == {}


async def test_the_service_ends_when_it_no_longer_hears_of_its_vms(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    parts: Any = dict.fromkeys(("teardown", "reconciler", "muting", "listening", "dispatcher"))
    shared = SharedParts(state=world.state, calls=world.api.calls, **parts)
    control = AgentSessions(shared)
    world.driver.infos.clear()

    async def run() -> None:
        with pytest.raises(HypervisorLost, match="events have ended"):
            await control.run()
        ended.set()

    ended = trio.Event()
    world.nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    world.driver.subscribers[-1].close()
    with trio.fail_after(1):
        await ended.wait()


async def test_what_dom0_lacks_for_a_channel_is_said_in_words(
    world: World,
    autojump_clock: Clock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def starved(_name: str, _domid: int) -> trio.abc.Stream:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    caplog.set_level("INFO")
    monkeypatch.setattr(world.driver, "connect_control", starved)
    await world.start()
    await trio.sleep(3)
    (said,) = [text for text in caplog.messages if "no connection to work" in text]
    assert said.startswith("no connection to work: no channel could be made: Too many open files")


async def test_an_agent_that_listens_within_two_seconds_of_the_start_is_not_complained_about(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    agent = world.driver.agents["work"]
    agent.listens = False
    await world.start()
    await trio.sleep(1.5)
    agent.listens = True
    await trio.sleep(1)
    assert world.state.agents.get("work") is not None
    assert not any("no connection" in text for text in caplog.messages)
    # Nor one that is started again.
    agent.listens = False
    agent.kill()
    await trio.sleep(1.5)
    assert not any("no connection" in text for text in caplog.messages)
    await trio.sleep(2)
    (said,) = [text for text in caplog.messages if "no connection" in text]
    assert said.startswith("no connection to work: its agent does not listen")
