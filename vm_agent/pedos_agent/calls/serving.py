"""The services of this VM that programs in other VMs call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
from pedos_protocol.agent_messages import parse_params
from pedos_protocol.call_messages import RunningCall
from pedos_protocol.errors import CallError
from pedos_vchan.peer import Handler, Peer

from pedos_agent.calls.channels import Channels, Tell
from pedos_agent.settings import Settings


class Serving:
    """The calls that run here."""

    def __init__(self, settings: Settings, channels: Channels, tell: Tell) -> None:
        self._settings = settings
        self._channels = channels
        self._tell = tell

    def handlers(self) -> Mapping[str, Handler]:
        """What dom0 may ask for."""
        return {"service.start": self._start}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        task_status.started()
        await trio.sleep_forever()

    async def kill(self, call: str, kind: str, status: int, text: str) -> bool:
        """End a call; whether there is such a one here."""
        return False

    def running(self) -> list[RunningCall]:
        """The calls that run here."""
        return []

    async def _start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        parse_params("service.start", params)
        raise CallError("failed", "this VM serves no calls yet")
