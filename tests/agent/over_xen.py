"""A disk, or a microphone, that the agents carry over Xen's channels, in a process of its own
(test_transport.py).

    python -m tests.agent.over_xen LIBRARIES FOLDER disk|microphone

LIBRARIES: what xen_libraries.build made

The stand-in for Xen keeps all domains in one process; which one a call is made for is set before
it. Such an agent is no real one, as it is of local mode in all but its transport.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attrs
import trio
from pedos_agent import agent
from pedos_agent.settings import Settings
from pedos_vchan import xen
from pedos_vchan.stream import VchanStream
from pedos_vchan.transport import CONTROL_PORT, Transport, Xen

from tests.native import xen_libraries

from . import test_mic
from .conftest import SECONDS, SIZE, FakeDom0, Pair, make_settings
from .sound_session import MIC
from .test_transport import is_lent_and_given_back

standin = xen_libraries.load(Path(sys.argv[1]))
xen._in_thread = xen_libraries.in_domain(standin)


@attrs.frozen
class OverXen(Settings):
    def transport(self) -> Transport:
        return Xen(self.domid)


class Dom0(FakeDom0):
    async def _connect(self) -> VchanStream:
        return VchanStream(await xen.connect(0, self.settings.domid, CONTROL_PORT))


async def main(root: Path, what: str) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            connected = []
            for vm, domid in (("sys-usb", 2), ("work", 3)):
                local = make_settings(root, vm, domid)
                changed = attrs.evolve(local, sound=root / f"{vm}.sound")
                settings = OverXen(**attrs.asdict(changed, recurse=False))
                (settings.devices / "block" / "stick.img").write_bytes(os.urandom(SIZE))
                await nursery.start(agent.run, settings)
                connected.append(Dom0(settings, nursery))
                await connected[-1].connect()
            if what == "disk":
                await is_lent_and_given_back(Pair(*connected))
            else:
                await is_heard(connected, nursery)
            assert list((root / "vchan").iterdir()) == [], "nothing went over shared memory"
            nursery.cancel_scope.cancel()


async def is_heard(connected: list[Dom0], nursery: trio.Nursery) -> None:
    vms = []
    for dom0, devices in zip(connected, ([MIC], []), strict=True):
        session = await test_mic.logged_in(dom0, nursery, *devices)
        vms.append(test_mic.Vm(dom0.settings.vm, dom0, nursery, session))
    await test_mic.is_heard(test_mic.Pair(*vms))


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[2]), sys.argv[3], strict_exception_groups=True)
