"""The agent's control channel when the ring fails before dom0 has come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio
import trio.testing
from pedos_agent.connections.control import Control
from pedos_vchan.transport import CONTROL_PORT

if TYPE_CHECKING:
    import pytest
    from pedos_agent.settings import Settings


class Flooded:
    """A listener whose ring a flood of events has failed; the third is as it should be."""

    made = 0

    def __init__(self, served: trio.Event) -> None:
        type(self).made += 1
        self._served = served

    async def accept(self) -> Any:
        await trio.lowlevel.checkpoint()
        if self.made < 3:
            raise trio.BrokenResourceError("event flood: domain 0 woke us too often without coming")
        self._served.set()
        await trio.sleep_forever()

    def __enter__(self) -> Flooded:
        return self

    def __exit__(self, *_: object) -> None:
        pass


async def test_an_agent_listens_anew_when_a_flood_has_failed_its_ring(
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    served = trio.Event()
    nothing = cast("Any", None)

    class Transport:
        async def listen(self, peer: int, port: int) -> Flooded:
            await trio.lowlevel.checkpoint()
            assert (peer, port) == (0, CONTROL_PORT)
            return Flooded(served)

    transport = cast("Any", Transport())
    calls = cast("Any", SimpleNamespace(handlers={}, harmless={}))
    control = Control(
        settings,
        transport,
        attachments=nothing,
        inventory=nothing,
        revision=nothing,
        calls=calls,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.run)
            await served.wait()
            nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records] == [
        "the control channel: event flood: domain 0 woke us too often without coming; trying again"
    ]
