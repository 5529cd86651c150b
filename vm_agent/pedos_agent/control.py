"""The control channel: this agent serves dom0, and reports to it.

The agent is the server, on (own domain, peer 0, CONTROL_PORT). One client at a time, one client
after another: when dom0's service restarts, it finds the agent listening again at once, and what is
attached goes on meanwhile. dom0's own agent listens on a Unix socket instead, because dom0 cannot
have a channel to itself.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import trio
from pedos_protocol.errors import CallError, LocalProtocolError, RemoteProtocolError
from pedos_protocol.messages import AgentReport, parse_params, to_wire
from pedos_vchan import shm
from pedos_vchan.peer import Handler, Peer
from pedos_vchan.stream import VchanStream
from pedos_vchan.unix import listen_unix

from .attachments import Attachments
from .inventory import Inventory
from .revision import Revision
from .settings import PROGRAM, Settings

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 10.0  # dom0 answers in milliseconds; a hung one is better left
RETRY_SECONDS: Final = 0.1  # after a client that failed before it was one
CONTROL_SOCKET_MODE: Final = 0o600


class Control:
    """Serves dom0's requests and keeps dom0's picture of this VM up to date."""

    def __init__(
        self,
        settings: Settings,
        *,
        attachments: Attachments,
        inventory: Inventory,
        revision: Revision,
    ) -> None:
        """Nothing listens before `run`."""
        self._settings = settings
        self._attachments = attachments
        self._inventory = inventory
        self._revision = revision
        self._peer: Peer | None = None  # set while dom0 is connected and knows our first report
        self._handlers: Mapping[str, Handler] = {
            "export.start": self._export_start,
            "export.stop": self._export_stop,
            "import.start": self._import_start,
            "import.stop": self._import_stop,
        }

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Ask dom0; CallError with dom0's refusal, or `unavailable` when it is not connected."""
        if self._peer is None:
            raise CallError("unavailable", "dom0's service is not reachable from this VM")
        return await self._peer.call(method, params, timeout=timeout)

    async def notify_ended(self, attachment: str, side: str, reason: str) -> None:
        """Tell dom0 that an attachment ended by itself; unconnected, the next report says it."""
        if self._peer is not None:
            params = {"attachment": attachment, "side": side, "reason": reason}
            await self._peer.notify("attachment.ended", params)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve dom0, connection after connection; started() when the first can come."""
        if self._settings.control_socket is not None:
            await self._run_on_socket(self._settings.control_socket, task_status)
        else:
            await self._run_on_vchan(task_status)

    async def _run_on_vchan(self, task_status: trio.TaskStatus[None]) -> None:
        first = True
        while True:
            listener = await shm.listen(
                self._settings.vchan, self._settings.domid, 0, shm.CONTROL_PORT
            )
            try:
                if first:
                    task_status.started()
                    first = False
                channel = await listener.accept()
            except OSError as error:
                log.warning("a client of the control channel failed: %s", error)
                await trio.sleep(RETRY_SECONDS)
                continue
            finally:
                listener.close()
            await self._converse(VchanStream(channel))

    async def _run_on_socket(self, path: Path, task_status: trio.TaskStatus[None]) -> None:
        async with await listen_unix(path, CONTROL_SOCKET_MODE) as listener:
            task_status.started()
            while True:
                stream = await listener.accept()
                _, uid, _ = struct.unpack(
                    "3i", stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                )
                if uid in (0, os.geteuid()):
                    await self._converse(stream)
                else:
                    log.warning("refused a client of the control socket: its user id is %d", uid)
                    await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end, which may be of any kind."""
        peer = Peer(stream, program=PROGRAM, handlers=self._handlers, name="dom0")
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(_run_then_cancel, peer, nursery.cancel_scope)
                log.info("dom0's service is connected")
                await self._report_changes(peer)
        except* (RemoteProtocolError, trio.BrokenResourceError) as group:
            log.warning("the connection to dom0's service failed: %s", group.exceptions[0])
        except* Exception:
            # A restart of the agent would end all attachments, so it goes on.
            log.exception("the connection to dom0's service failed unexpectedly")
        finally:
            self._peer = None
        log.info("dom0's service is disconnected")

    async def _report_changes(self, peer: Peer) -> None:
        """Report the whole state, first at once, then whenever it is another."""
        seen = -1
        while True:
            seen = await self._revision.after(seen)
            report = AgentReport(
                revision=seen,
                devices=tuple(self._inventory.devices()),
                exports=tuple(self._attachments.exports()),
                imports=tuple(self._attachments.imports()),
            )
            try:
                await peer.call("agent.report", to_wire(report), timeout=REPORT_SECONDS)
            except CallError as error:
                if error.code == "unavailable":
                    return  # disconnected meanwhile: the next connection starts with a report
                # Connected but uninformed is the one state that nothing would repair: let dom0
                # connect anew.
                log.warning("dom0 did not take the report: %s", error.message)
                peer.close()
                return
            except LocalProtocolError:
                log.exception("the report cannot be sent")
                continue
            self._peer = peer

    # Requests of dom0. The results are maps with the keys that messages.SCHEMA says.

    async def _export_start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        await self._attachments.start_export(parse_params("export.start", params))
        return {}

    async def _export_stop(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        await self._attachments.stop_export(parse_params("export.stop", params).attachment)
        return {}

    async def _import_start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        parsed = parse_params("import.start", params)
        return {"frontend": await self._attachments.start_import(parsed)}

    async def _import_stop(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        await self._attachments.stop_import(parse_params("import.stop", params).attachment)
        return {}


async def _run_then_cancel(
    peer: Peer, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    await peer.run(task_status=task_status)
    scope.cancel()
