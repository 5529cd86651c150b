"""The control channel: this agent serves dom0, and reports to it.

The agent is the server, on (own domain, peer 0, CONTROL_PORT). It serves one client after another:
when dom0's service restarts, it finds the agent listening again at once, and attachments continue
meanwhile. dom0's own agent listens on a Unix socket instead, because dom0 cannot have a channel to
itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import trio
from pedos_host.unix import listen_unix, peer_uid
from pedos_protocol.agent_messages import SCHEMA, AgentReport, parse_params
from pedos_protocol.errors import CallError, LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import DEADLINE_MS_MAX_IN_1
from pedos_protocol.schema import to_wire
from pedos_vchan.peer import Handler, Peer
from pedos_vchan.quota import NO_LIMIT
from pedos_vchan.serving import Result
from pedos_vchan.stream import VchanStream
from pedos_vchan.transport import CONTROL_PORT, Listener, Transport

from pedos_agent.attachments.table import Attachments, explain
from pedos_agent.calls.calls import Calls
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.inventory.report import page_in_1, pages
from pedos_agent.settings import PROGRAM, Settings
from pedos_agent.system.revision import Revision

log = logging.getLogger(__name__)

#: dom0 answers in milliseconds. After this the agent sends a newer report.
REPORT_SECONDS: Final = 10.0
# Seconds after a client that failed before its hello, and until a full disk or table of descriptors
# has room again: the wait of dom0's own attempts is of this order.
RETRY_SECONDS: Final = 0.1
CONTROL_SOCKET_MODE: Final = 0o600
# Between two notices of who listens: a person sees no difference, and a VM that changes it all the
# time costs dom0 at most 128 notices a second.
LISTENING_SECONDS: Final = 0.5


class Control:
    """Serves dom0's requests and keeps dom0's picture of this VM up to date."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        *,
        attachments: Attachments,
        calls: Calls,
        inventory: Inventory,
        revision: Revision,
    ) -> None:
        """Nothing listens before `run`."""
        self._control_socket = settings.control_socket
        self._transport = transport
        self._attachments = attachments
        self._calls = calls
        self._inventory = inventory
        self._revision = revision
        self._peer: Peer | None = None  # set while dom0 is connected and knows our first report
        handlers: dict[str, Handler] = {
            "export.start": _in_words(_if_still_asked(self._export_start)),
            "export.stop": _in_words(_if_still_asked(self._export_stop)),
            "export.mute": _in_words(_if_still_asked(self._export_mute)),
            "import.start": _in_words(_if_still_asked(self._import_start)),
            "import.stop": _in_words(_if_still_asked(self._import_stop)),
            "import.check": _in_words(self._import_check),
            "report.prefer": self._report_prefer,
            **calls.harmless,
        }
        for method, handler in calls.handlers.items():
            handlers[method] = _in_words(_if_still_asked(handler))
        self._handlers: Mapping[str, Handler] = handlers
        self._not_told = 0  # devices that an older dom0 cannot be told of

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Ask dom0; CallError with dom0's refusal, or `unavailable` when it is not connected. As
        `Peer.call`."""
        peer = self._connected()
        return await peer.call(method, params, timeout=_bounded(peer, timeout))

    def ask(
        self,
        method: str,
        params: dict[str, Any],
        *,
        timeout: float,
        then: Callable[[dict[str, Any] | CallError], None],
    ) -> Callable[[], None]:
        """As `call`, by `Peer.ask`."""
        peer = self._connected()
        return peer.ask(method, params, timeout=_bounded(peer, timeout), then=then)

    def _connected(self) -> Peer:
        if self._peer is None or not self._peer.is_open:
            raise CallError("unavailable", "dom0's service is not reachable from this VM")
        return self._peer

    def tell(self, method: str, params: dict[str, Any]) -> bool:
        """Tell dom0 something without waiting; it is dropped when dom0 is not connected, which is
        False, or so old that it does not know the notice."""
        if self._peer is None or not self._peer.is_open:
            return False
        try:
            self._peer.notify_now(method, SCHEMA.params_in(self._peer.version, method, params))
        except CallError as error:
            log.debug("dom0 is not told: %s", error.message)
        except LocalProtocolError:
            log.exception("dom0 cannot be told")
        return True

    async def notify_ended(self, attachment: str, side: str, reason: str) -> None:
        """Tell dom0 that an attachment ended by itself; without a connection, the next report says
        so."""
        if self._peer is not None:
            params = {"attachment": attachment, "side": side, "reason": reason}
            await self._peer.notify("attachment.ended", params)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve dom0, connection after connection; started() when the first can come.

        OSError if it cannot listen for the first one. From then on there may be attachments, which
        a lack of room or descriptors must not end: it tries again until it can.
        """
        if self._control_socket is not None:
            await self._run_on_socket(self._control_socket, task_status)
        else:
            await self._run_on_vchan(task_status)

    async def _run_on_vchan(self, task_status: trio.TaskStatus[None]) -> None:
        listener: Listener | None = await self._listen()
        task_status.started()
        retries = _Retries("the control channel")
        while True:
            try:
                with listener or await self._listen() as listening:
                    channel = await listening.accept()
            except (OSError, trio.BrokenResourceError) as error:
                await retries.wait(error)
            else:
                retries.over()
                await self._converse(VchanStream(channel))
            listener = None

    async def _listen(self) -> Listener:
        return await self._transport.listen(0, CONTROL_PORT)

    async def _run_on_socket(self, path: Path, task_status: trio.TaskStatus[None]) -> None:
        async with await listen_unix(path, CONTROL_SOCKET_MODE) as listener:
            task_status.started()
            retries = _Retries("the control socket")
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    await retries.wait(error)
                    continue
                retries.over()
                uid = peer_uid(stream)
                if uid in (0, os.geteuid()):
                    await self._converse(stream)
                else:
                    log.warning("refused a client of the control socket: its user id is %d", uid)
                    await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends in any way."""
        peer = Peer(
            stream,
            program=PROGRAM,
            handlers=self._handlers,
            notices={},
            name="dom0",
            result_in=SCHEMA.result_in,
            frames_per_second=NO_LIMIT,  # answers to this VM's users; their end ends what is lent
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(_run_then_cancel, peer, nursery.cancel_scope)
                log.info("dom0's service is connected")
                await self._report_changes(peer, nursery)
        except* (RemoteProtocolError, trio.BrokenResourceError) as group:
            log.warning("the connection to dom0's service failed: %s", group.exceptions[0])
        except* Exception:
            # A restart of the agent would end all attachments, so it continues.
            log.exception("the connection to dom0's service failed unexpectedly")
        finally:
            self._peer = None
            self._calls.alone()
        log.info("dom0's service is disconnected")

    async def _report_changes(self, peer: Peer, nursery: trio.Nursery) -> None:
        """Report the whole state, first at once, then after every change."""
        seen = -1
        while True:
            seen = await self._revision.after(seen)
            try:
                for page in self._report(seen, peer.version):
                    params = SCHEMA.params_in(peer.version, "agent.report", to_wire(page))
                    await peer.call("agent.report", params, timeout=REPORT_SECONDS)
            except CallError as error:
                if error.code == "unavailable":
                    return  # disconnected meanwhile: the next connection starts with a report
                if error.code == "timeout":
                    # dom0 is slow, or this VM was paused. Hanging up would end all attachments of
                    # this VM.
                    log.warning("dom0 is told again: %s", error.message)
                    seen = -1
                    continue
                # A connection without a report is the one state that nothing would repair: let dom0
                # reconnect.
                log.warning("dom0 did not take the report: %s", error.message)
                peer.close()
                return
            except LocalProtocolError:
                log.exception("the report cannot be sent")
                continue
            if self._peer is None:
                nursery.start_soon(self._tell_listening, peer)
            self._peer = peer

    async def _tell_listening(self, peer: Peer) -> None:
        """Tell who listens to what is lent: at once, as the report may be older, and after each
        change."""
        if peer.version == 1:
            return
        told: dict[str, bool] = {}
        seen = -1
        while True:
            seen = await self._attachments.host.heard.after(seen)
            now = self._attachments.heard()
            for attachment, listening in now.items():
                if told.get(attachment) is not listening:
                    params = {"attachment": attachment, "listening": listening}
                    await peer.notify("attachment.listening", params)
            told = now
            await trio.sleep(LISTENING_SECONDS)

    def _report(self, revision: int, version: int) -> Iterable[AgentReport]:
        """The pages for a dom0 that speaks this version of the protocol."""
        devices = self._inventory.devices()
        exports, imports = self._attachments.exports(), self._attachments.imports()
        if version > 1:
            return pages(revision, devices, exports, imports, self._inventory.missing())
        page = page_in_1(revision, devices, exports, imports)
        not_told = len(devices) - len(page.devices)
        if not_told and not_told != self._not_told:
            log.warning("dom0's service is older, and cannot be told of %d devices", not_told)
        self._not_told = not_told
        return [page]

    # Requests of dom0. The results are maps with the keys that agent_messages.SCHEMA says.

    async def _export_start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        started = await self._attachments.start_export(parse_params("export.start", params))
        return to_wire(started)

    async def _export_stop(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        await self._attachments.stop_export(parse_params("export.stop", params).attachment)
        return {}

    async def _export_mute(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        parsed = parse_params("export.mute", params)
        await self._attachments.mute_export(parsed.attachment, parsed.muted)
        return {}

    async def _import_start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        parsed = parse_params("import.start", params)
        frontend = await self._attachments.start_import(parsed)
        note = self._attachments.note_of(parsed.attachment)
        return {"frontend": frontend, **({} if note is None else {"note": note})}

    async def _import_stop(self, peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        parsed = parse_params("import.stop", params)
        await self._attachments.stop_import(
            parsed.attachment,
            parsed.frontend,
            parsed.device_class,
            may_refuse=parsed.may_refuse,
            still_asked=peer.caught_up,
        )
        return {}

    async def _import_check(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        parsed = parse_params("import.check", params)
        await self._attachments.check_import(
            parsed.attachment, parsed.frontend, parsed.device_class
        )
        return {}

    async def _report_prefer(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        wanted = parse_params("report.prefer", params).devices
        keys = [(each.device_class, each.device) for each in wanted]
        return {"revision": await self._inventory.prefer(keys)}


def _bounded(peer: Peer, timeout: float) -> float:
    """A VM's user may ask for a longer one, for which a dom0 of version 1 would end the connection.
    The deadline is rounded up."""
    return min(timeout, (DEADLINE_MS_MAX_IN_1 - 1) / 1000) if peer.version == 1 else timeout


def _in_words(handler: Handler) -> Handler:
    """`handler`, with its OSError (a missing folder, no descriptors) as an answer and no bug."""

    async def served(peer: Peer, params: dict[str, Any]) -> Result:
        try:
            return await handler(peer, params)
        except OSError as error:
            raise explain(error) from error

    return served


def _if_still_asked(handler: Handler) -> Handler:
    """`handler`, which changes something: not started for a caller that gave up while this program
    was paused, because dom0's state is another one since."""

    async def served(peer: Peer, params: dict[str, Any]) -> Result:
        await peer.caught_up()
        return await handler(peer, params)

    return served


class _Retries:
    """Waits between attempts, and logs the reason once, not ten times a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = ""

    async def wait(self, error: Exception) -> None:
        """Note a failed attempt, and wait until the next one is due."""
        if str(error) != self._said:
            self._said = str(error)
            log.warning("%s: %s; trying again", self._what, error)
        await trio.sleep(RETRY_SECONDS)

    def over(self) -> None:
        """Note that it works again."""
        if self._said:
            log.info("%s: it works again", self._what)
        self._said = ""


async def _run_then_cancel(
    peer: Peer, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    await peer.run(task_status=task_status)
    scope.cancel()
