"""An agent that is killed at any step of lending or borrowing a microphone: nobody hears anything
after it, neither session keeps a stream, and the next attach works."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio
from pedos_agent.settings import Settings
from pedos_host import faultpoints
from pedos_host.children import Child
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE

from .conftest import ATTACHMENT, FakeDom0, make_settings
from .sound_session import MIC, audio
from .test_faults import fault_at, warm_start
from .test_mic import STEPS, Pair, Vm, logged_in
from .test_process import program


@pytest.mark.parametrize("step", STEPS)
async def test_an_agent_killed_at_any_step_leaves_nothing_and_attach_works_again(
    step: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    start: Callable[[Settings], Awaitable[FakeDom0]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The side that the step belongs to is a process of its own, and dies there."""
    source, target = [
        attrs.evolve(make_settings(tmp_path, name, domid), sound=tmp_path / f"{name}.sound")
        for name, domid in (("sys-usb", 2), ("work", 3))
    ]
    devices = {"sys-usb": [MIC], "work": []}
    dying = source if step.startswith("export") else target

    async def vm(settings: Settings, dom0: FakeDom0) -> Vm:
        session = await logged_in(dom0, nursery, *devices[settings.vm])
        return Vm(settings.vm, dom0, nursery, session)

    victim: list[Child] = []
    with trio.fail_after(PATIENCE):
        living = target if dying is source else source
        lives = await vm(living, await start(living))
        async with fault_at(step, tmp_path, lambda: victim[0].kill(), monkeypatch) as reached:
            async with program(dying, warm_start) as child:
                victim.append(child)
                dom0 = FakeDom0(dying, nursery)
                await dom0.connect()
                dead = await vm(dying, dom0)
                pair = Pair(dead, lives) if dying is source else Pair(lives, dead)
                with contextlib.suppress(CallError):
                    await pair.lend()
                    await pair.borrow()
                    if not step.endswith(".stopped"):
                        # The source may not have accepted its target yet, and never would.
                        await reached.wait()
                    await pair.detach()
                await reached.wait()
                await child.wait()
            monkeypatch.setattr(faultpoints, "ADDRESS", "")
        await dead.session.over.wait()
        # Like dom0: the side that lives is told to stop.
        which = "import.stop" if dying is source else "export.stop"
        await lives.dom0.call(which, attachment=ATTACHMENT)
        assert all(each.is_closed for each in lives.session.streams.values())
        dead.dom0 = await start(dying)
        await dead.log_in(*devices[dying.vm])
        here, there = await pair.attach()
        here.send(audio(1))
        assert await there.next() == audio(1)
        await pair.detach()
