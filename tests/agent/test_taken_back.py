"""A request of dom0 that is withdrawn before it is done changes nothing.

While an agent is stopped or its VM paused, dom0 gives up and reports the state of the device. When
the agent continues, the request is still there to be read, and so is its cancellation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing
from pedos_agent.device_classes.block import borrowed, mounts
from pedos_agent.device_classes.block.mounts import is_mounted
from pedos_protocol.errors import CallError
from pedos_protocol.events import Notice, Request
from pedos_vchan.session import CANCELLED

from .conftest import ATTACHMENT, FakeDom0, Pair, needs_fuse

ID = 1 << 31  # no call of dom0's has it


def say(dom0: FakeDom0, *events: Request | Notice) -> None:
    """At once, before anything is read."""
    for event in events:
        dom0.peer._session.post(event)
    dom0.peer._session.outbox.write_now()


async def answered(dom0: FakeDom0) -> None:
    while dom0.peer._connection.is_in_flight(ID):
        await trio.testing.wait_all_tasks_blocked(0.001)


STOP = {"attachment": ATTACHMENT, "may_refuse": True, "frontend": None}
START = {"attachment": "f" * 16, "device_class": "block", "port": 9, "read_only": False}
TAKEN_BACK = Notice(CANCELLED, {"id": ID})


@needs_fuse
@pytest.mark.parametrize(
    ("side", "method", "params"),
    [
        ("target", "import.stop", STOP),
        ("target", "import.stop", {**STOP, "may_refuse": False}),
        ("source", "export.stop", {"attachment": ATTACHMENT}),
        ("source", "export.start", {**START, "device": "other.img", "peer": 4}),
        (
            "target",
            "import.start",
            {**START, "backend": "x", "device": "y", "peer": 9, "frontend": None},
        ),
    ],
)
async def test_what_is_taken_back_already_when_it_is_read_is_not_begun(
    pair: Pair,
    side: str,
    method: str,
    params: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (pair.disk.parent / "other.img").write_bytes(b"x" * 512)
    await pair.source.until(lambda report: len(report.devices) == 2)
    file = await pair.attach()
    dom0 = getattr(pair, side)
    caplog.clear()
    caplog.set_level("INFO")
    say(dom0, Request(ID, method, params, 20_000), TAKEN_BACK)
    await answered(dom0)
    assert "starts" not in caplog.text and "ended" not in caplog.text
    assert is_mounted(file)
    assert await trio.to_thread.run_sync(file.read_bytes) == pair.disk.read_bytes()


@needs_fuse
async def test_a_disk_stays_if_its_detach_is_taken_back_while_is_looked_who_uses_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await pair.attach()
    real = borrowed.elsewhere

    def elsewhere(path: Path) -> str:
        trio.from_thread.run_sync(say, pair.target, TAKEN_BACK)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(borrowed, "elsewhere", elsewhere)
        patch.setattr(mounts, "unmount", unmount := mock.AsyncMock(return_value=True))
        say(pair.target, Request(ID, "import.stop", STOP, 20_000))
        await answered(pair.target)
    assert not unmount.called
    assert is_mounted(file)
    with pytest.raises(CallError, match="is in use"), file.open("rb"):
        await pair.target.call("import.stop", **STOP)
    await pair.target.call("import.stop", **STOP)
    assert not is_mounted(file)
