"""kill -9 of nbdkit, nbdfuse and either agent at every named step of attach and detach.

The agent itself announces the steps (pedos_host.faultpoints): the test stops it there, kills, and
lets it continue; then everything must be gone and the same attach must work again.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from pedos_agent.device_classes.block import mounts
from pedos_agent.settings import Settings
from pedos_host import faultpoints
from pedos_host.children import Child
from pedos_host.unix import listen_unix
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE
from tests.warm import our_nest, start_from

from .conftest import ATTACHMENT, SIZE, FakeDom0, Pair, make_settings, needs_fuse, pid_of
from .test_process import program

#: An agent that is killed at a step has begun like any other.
warm_start = start_from(our_nest)

pytestmark = needs_fuse

STEPS = [
    "export.opened",
    "export.listening",
    "export.connected",
    "import.connected",
    "import.spawned",
    "import.ready",
    "import.unmounted",
    "import.stopped",
    "export.stopped",
]
# Steps at which a helper certainly runs, so that no test passes by killing nothing.
ALIVE_AT = {
    "nbdkit": ["export.listening", "export.connected", "import.spawned", "import.ready"],
    "nbdfuse": ["import.spawned", "import.ready"],
}


@asynccontextmanager
async def fault_at(
    step: str, folder: Path, kill: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[trio.Event]:
    """Calls `kill` when an agent reaches `step` for the first time; the event then is set."""
    path = folder / "faults.sock"
    reached = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            line = (await stream.receive_some(200)).decode()
            if line.split()[-1] == step and not reached.is_set():
                reached.set()
                kill()

    monkeypatch.setenv("PEDOS_FAULTPOINTS", str(path))  # of children
    monkeypatch.setattr(faultpoints, "ADDRESS", str(path))
    async with await listen_unix(path, 0o600) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield reached
        nursery.cancel_scope.cancel()


def kill_helper(name: str, step: str) -> None:
    try:
        os.kill(pid_of(name), signal.SIGKILL)
    except ValueError:  # there is none at this step
        assert step not in ALIVE_AT[name]


@pytest.mark.parametrize("helper", ["nbdkit", "nbdfuse"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_helper_killed_at_any_step_leaves_nothing_and_attach_works_again(
    pair: Pair, step: str, helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(PATIENCE):
        async with fault_at(
            step, tmp_path, lambda: kill_helper(helper, step), monkeypatch
        ) as reached:
            with contextlib.suppress(CallError):
                await pair.attach()
            await pair.detach()
            await reached.wait()
            # Like dom0 after any failure: stop is idempotent and returns when everything is gone.
            await pair.detach()
        await pair.source.until(lambda report: not report.exports)
        await pair.target.until(lambda report: not report.imports)
        assert os.listdir(pair.target.settings.dev) == []
        file = await pair.attach()
        assert await trio.to_thread.run_sync(file.read_bytes) == pair.disk.read_bytes()


@pytest.mark.parametrize("step", STEPS)
async def test_an_agent_killed_at_any_step_leaves_nothing_and_attach_works_again(
    settings: Settings,
    step: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    start: Callable[[Settings], Awaitable[FakeDom0]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The side that the step belongs to is a process of its own, and dies there."""
    source_settings, target_settings = settings, make_settings(tmp_path, "work", 3)
    victim_settings = source_settings if step.startswith("export") else target_settings
    disk = source_settings.devices / "block" / "stick.img"
    disk.write_bytes(b"\1" * SIZE)
    victim: list[Child] = []
    with trio.fail_after(PATIENCE):
        async with fault_at(step, tmp_path, lambda: victim[0].kill(), monkeypatch) as reached:
            async with program(victim_settings, warm_start) as child:
                victim.append(child)
                dead = FakeDom0(victim_settings, nursery)
                await dead.connect()
                if victim_settings is source_settings:
                    pair = Pair(dead, await start(target_settings))
                else:
                    pair = Pair(await start(source_settings), dead)
                with contextlib.suppress(CallError):
                    await pair.attach()
                    await pair.detach()
                await reached.wait()
                await child.wait()
            monkeypatch.setattr(faultpoints, "ADDRESS", "")
            # Like dom0: the side that lives is told to stop.
            if victim_settings is source_settings:
                await pair.target.call("import.stop", attachment=ATTACHMENT)
            else:
                await pair.source.call("export.stop", attachment=ATTACHMENT)
        async with program(victim_settings, warm_start):
            await dead.connect()
            assert dead.report.exports == dead.report.imports == ()
            assert mounts.mounted_frontends(target_settings.dev) == []
            assert os.listdir(target_settings.dev) == []
            file = await pair.attach()
            assert await trio.to_thread.run_sync(file.read_bytes) == disk.read_bytes()
            await pair.detach()
