"""The socket of this VM's own command line: what it may ask is passed on to dom0.

Any user of the VM may connect; the VM is one party to dom0, which decides under policy. The agent
only keeps its own clients from using up the control channel.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_vchan.peer import Handler, Peer
from pedos_vchan.unix import listen_unix

from .settings import PROGRAM

log = logging.getLogger(__name__)

METHODS: Final = ("device.list", "device.attach", "device.detach", "policy.mine")
SOCKET_MODE: Final = 0o666
CLIENTS_MAX: Final = 64  # a person's scripts run a few; each costs tens of KiB
# Clients beyond that which are told so within so many seconds; more are only hung up on.
REFUSED_MAX: Final = 8
REFUSED_SECONDS: Final = 2.0
# In flight to dom0 at once: a quarter of what the control channel may have, so that the agent's own
# reports always find a place.
FORWARDS_MAX: Final = 32
# Requests a second in the long run, and at once: far below dom0's limit, which ends the channel.
RATE: Final = 500
BURST: Final = 500
# dom0 ends a request at the client's deadline, which is passed on; this is only the longest one.
FORWARD_SECONDS: Final = 600.0

Forward = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class LocalSocket:
    """Serves the VM's own clients by forwarding the methods of METHODS unchanged."""

    def __init__(self, path: Path, forward: Forward) -> None:
        """`forward` asks dom0 and raises CallError with its refusal."""
        self._path = path
        self._forward = forward
        self._clients = 0
        self._refused = 0
        self._places = trio.Semaphore(FORWARDS_MAX)
        self._next = 0.0  # when the next request may go, if the burst is used up
        self._handlers: dict[str, Handler] = {method: self._handler(method) for method in METHODS}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() when clients can connect."""
        async with await listen_unix(self._path, SOCKET_MODE) as listener:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._clients >= CLIENTS_MAX:
            await self._refuse(stream)
            return
        self._clients += 1
        try:
            await Peer(stream, program=PROGRAM, handlers=self._handlers, name="client").run()
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            log.info("a client failed: %s", error)
        except Exception:
            log.exception("serving a client failed")
        finally:
            self._clients -= 1

    async def _refuse(self, stream: trio.SocketStream) -> None:
        """Tell one client too many that it is, if it is not one of very many."""
        if self._refused >= REFUSED_MAX:
            await trio.aclose_forcefully(stream)
            return
        log.warning("refused a client: %d are connected", self._clients)
        self._refused += 1
        try:
            with trio.move_on_after(REFUSED_SECONDS):
                handlers: dict[str, Handler] = {}
                peer = Peer(stream, program=PROGRAM, handlers=handlers, default_handler=_full)
                await peer.run()
        except (RemoteProtocolError, trio.BrokenResourceError):
            pass  # it has gone, or is none of ours
        finally:
            self._refused -= 1
            await trio.aclose_forcefully(stream)

    def _handler(self, method: str) -> Handler:
        async def handle(_peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
            async with self._places:
                await self._pace()
                return await self._forward(method, params)

        return handle

    async def _pace(self) -> None:
        self._next = max(self._next, trio.current_time()) + 1 / RATE
        await trio.sleep_until(self._next - BURST / RATE)


async def _full(_peer: Peer, _method: str, _params: dict[str, Any]) -> dict[str, Any]:
    raise CallError("quota", f"{CLIENTS_MAX} programs of this VM are connected to dom0 already")
