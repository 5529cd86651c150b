"""dom0's service of the first release, which speaks version 1 of the protocol: a VM's packages were
upgraded before dom0's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pedos_agent.inventory.report import CLASSES_IN_1, IDENTITY_MAX_IN_1, page_in_1
from pedos_agent.settings import Settings
from pedos_host.unix import connect_unix
from pedos_protocol.agent_messages import Device, ExportState, ImportState
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.events import DEADLINE_MS_MAX_IN_1, Request
from pedos_protocol.fields import ATTACHMENTS_MAX, PAGE_DEVICES_MAX
from pedos_protocol.schema import wire_size
from pedos_vchan.peer import Peer, open_peer
from pedos_vchan.serving import Server

from tests.protocol.version_1 import MESSAGES, wrong_in_1

from .conftest import ATTACHMENT, FakeDom0, Pair, needs_fuse

Start = Callable[[Settings], Awaitable[FakeDom0]]


@pytest.fixture(autouse=True)
def dom0_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of a connection are here, and offer version 1 alone."""
    monkeypatch.setattr("pedos_vchan.peer.VERSIONS", (1, 1))
    take = FakeDom0._take_report

    async def strictly(dom0: FakeDom0, peer: Peer, params: dict[str, Any]) -> None:
        assert wrong_in_1(MESSAGES["agent.report"]["params"], params) is None
        await take(dom0, peer, params)

    monkeypatch.setattr(FakeDom0, "_take_report", strictly)


@needs_fuse
async def test_a_disk_is_lent_and_given_back(pair: Pair) -> None:
    assert await pair.source.lend(ATTACHMENT, "stick.img", 3) == {}
    answer = await pair.target.borrow(ATTACHMENT, "stick.img", 2)
    assert wrong_in_1(MESSAGES["import.start"]["result"], answer) is None
    await pair.source.until(lambda report: report.exports)
    await pair.target.until(lambda report: report.imports)
    await pair.detach()
    await pair.target.until(lambda report: not report.imports)


async def test_a_request_that_is_passed_on_has_a_deadline_that_dom0_takes(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    dom0 = await start(settings)
    dom0.answers["device.attach"] = {}
    deadlines = []
    begin = Server.begin

    def noting(server: Server[Peer], peer: Peer, request: Request) -> Any:
        deadlines.append(request.deadline_ms)
        return begin(server, peer, request)

    monkeypatch.setattr(Server, "begin", noting)
    async with open_peer(await connect_unix(settings.socket), program="x", handlers={}) as client:
        await client.call("device.attach", {}, timeout=1000)
    of_the_client, of_the_agent = deadlines
    assert of_the_agent <= DEADLINE_MS_MAX_IN_1 < of_the_client


def a_device(name: str, **fields: Any) -> Device:
    plain = {"identity": "", "description": "", "size": 1, "parent": None, "read_only": False}
    return Device(**{"device_class": "block", "device": name, **plain, "busy": None, **fields})


def exported(name: str, number: int = 1) -> ExportState:
    return ExportState(f"{number:016x}", "block", name, 3, number, False)


def names(devices: list[Device], *lent: str) -> list[str]:
    page = page_in_1(1, devices, [*map(exported, lent)], [])
    return [each.device for each in page.devices]


def test_lent_devices_come_first_as_there_is_one_page() -> None:
    many = [a_device(f"d{number}") for number in range(2 * PAGE_DEVICES_MAX)]
    assert names(many, "d200") == ["d200", *(f"d{n}" for n in range(PAGE_DEVICES_MAX - 1))]


def test_all_that_can_be_lent_fits_into_the_page_and_the_page_into_a_frame() -> None:
    texts = {"identity": "i" * 128, "description": "d" * 128, "busy": "b" * 128}
    many = [a_device(f"d{n}".ljust(64, "x"), **texts) for n in range(PAGE_DEVICES_MAX)]
    lent = [each.device for each in many[-ATTACHMENTS_MAX:]]
    assert names(many, *lent)[: len(lent)] == lent
    taken = ImportState("f" * 16, "block", "v" * 31, "d" * 64, 1, 2**31 - 1, False, "xvdi")
    exports = [*map(exported, lent)]
    page = page_in_1(1, many, exports, [taken] * ATTACHMENTS_MAX)
    assert wire_size(page) < FRAME_MAX - 100


def test_a_device_that_dom0_would_refuse_does_not_make_it_refuse_the_report() -> None:
    long = "i" * IDENTITY_MAX_IN_1
    devices = [a_device("a", device_class="tpm"), a_device("b", identity=long)]
    assert names([*devices, a_device("c", identity=long + "i")]) == ["b"]
    assert {"tpm"}.isdisjoint(CLASSES_IN_1)


def test_a_parent_of_another_class_is_none_and_what_cannot_be_looked_at_is_busy() -> None:
    said = [
        a_device("sda", parent="1-2", parent_class="usb"),
        a_device("sda1", parent="sda"),
        a_device("sdb", stale="it hangs"),
        a_device("sdc", stale="it hangs", busy="mounted"),
    ]
    heard = page_in_1(1, said, [], []).devices
    assert [each.parent for each in heard] == [None, "sda", None, None]
    assert [each.busy for each in heard] == [None, None, "it hangs", "mounted"]
