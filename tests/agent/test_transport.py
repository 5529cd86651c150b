"""Devices that the agents carry, over the channels of both hypervisors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from pedos_agent.device_classes.data_channel import from_target, to_source
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.settings import xen_settings
from pedos_protocol.agent_messages import ImportStart
from pedos_protocol.errors import CallError
from pedos_vchan.transport import DATA_ORDERS, SharedMemory, Xen

from tests.interop import program as interop
from tests.native import xen_libraries
from tests.trio_versions import LEFT_ALONE

from .conftest import ATTACHMENT, SECONDS, SIZE, Pair, needs_fuse

if TYPE_CHECKING:
    from pedos_agent.settings import Settings

ROOT = Path(__file__).parents[2]
WORDS = b"written in the target"


async def is_lent_and_given_back(pair: Pair) -> None:
    """The target reads the source's disk and writes to it, and then nothing is left."""
    before = pair.disk.read_bytes()
    file = await pair.attach()
    assert await trio.to_thread.run_sync(file.read_bytes, **LEFT_ALONE) == before

    def write() -> None:
        with file.open("r+b") as disk:
            disk.write(WORDS)

    await trio.to_thread.run_sync(write, **LEFT_ALONE)
    await pair.detach()
    assert pair.disk.read_bytes() == WORDS + before[len(WORDS) :]
    assert not file.exists()
    assert len(before) == SIZE


@needs_fuse
async def test_a_disk_goes_through_shared_memory(pair: Pair) -> None:
    assert isinstance(pair.source.settings.transport(), SharedMemory)
    with trio.fail_after(SECONDS):
        await is_lent_and_given_back(pair)


@pytest.mark.skipif(bool(interop.missing()), reason=interop.missing())
@pytest.mark.parametrize("what", [pytest.param("disk", marks=needs_fuse), "microphone"])
def test_what_the_agents_carry_goes_through_xens_channels(tmp_path: Path, what: str) -> None:
    """Over a stand-in for Xen, and with Debian's unmodified libxenvchan."""
    libraries, root = tmp_path / "libraries", tmp_path / "root"
    libraries.mkdir()
    root.mkdir()
    xen_libraries.build(libraries)
    command = [sys.executable, "-m", "tests.agent.over_xen", libraries, root, what]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=2 * SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_say_which_transport_it_is(settings: Settings, tmp_path: Path) -> None:
    assert isinstance(settings.transport(), SharedMemory)
    assert isinstance(xen_settings("work", 3, tmp_path, None).transport(), Xen)


async def test_a_target_that_floods_a_listener_ends_its_own_attachment_alone() -> None:
    """Only on Xen can a ring fail before its client has come."""

    class Flooded:
        async def accept(self) -> Any:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("event flood: domain 3 woke us too often")

    lifetime = Lifetime()
    lifetime.ready({})
    assert await from_target(cast("Any", Flooded()), lifetime) is None
    assert lifetime.reason == "the target cannot connect: event flood: domain 3 woke us too often"


async def test_a_source_that_is_slow_to_listen_is_waited_for_and_not_for_ever(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    params = ImportStart(ATTACHMENT, "block", "sys-usb", "sda", 7, 2, False, None)
    target = SharedMemory(tmp_path, 3)
    with pytest.raises(CallError, match="no channel to sys-usb: No such file or directory"):
        await to_source(target, params)

    async def listen() -> None:
        await trio.sleep(0.5)
        with await SharedMemory(tmp_path, 2).listen(3, 7, DATA_ORDERS) as listener:
            (await listener.accept()).close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        (await to_source(target, params)).close()
