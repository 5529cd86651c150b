"""The socket of this VM's own command line: the agent forwards its requests to dom0.

Any user of the VM may connect; for dom0, which decides under policy, the VM is one party. The agent
only keeps its own clients from using up the control channel.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio
from pedos_host.throttle import throttle
from pedos_host.unix import listen_unix
from pedos_host.unix_stream import UnixStream
from pedos_protocol.codec import encode
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.words import request_to
from pedos_vchan.clients import serve_clients
from pedos_vchan.peer import Handler, Peer
from pedos_vchan.quota import BYTES_PER_FRAME

from pedos_agent.settings import PROGRAM

log = logging.getLogger(__name__)

METHODS: Final = (
    "device.classes",
    "device.list",
    "device.info",
    "device.attach",
    "device.detach",
    "device.assign",
    "device.unassign",
    "device.assignments",
    "watch.next",
    "policy.mine",
)
SOCKET_MODE: Final = 0o666
CLIENTS_MAX: Final = 64  # a person's scripts run a few; each costs tens of KiB
# In flight to dom0 at once. The largest answers to all of them are three quarters of what may wait
# for a VM that is paused for a moment; with more, dom0 ends the channel.
FORWARDS_MAX: Final = 12
# Bytes of a request: some two hundred VM names. While dom0 does not read, requests wait for it also
# when their clients have given up: as many as a channel may have in flight, which together are
# three quarters of what may wait for dom0. With more, the channel ends.
REQUEST_MAX: Final = 6 * 1024
# Requests a second in the long run, and at once: far below dom0's limit, beyond which it ends the
# channel. Bytes count as they do for dom0.
RATE: Final = 500
BURST: Final = 500
# dom0 ends a request at the client's deadline, which the agent forwards; this is only the longest
# one: more than a VM's start with devices takes at worst.
FORWARD_SECONDS: Final = 1200.0

Forward = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class LocalSocket:
    """Serves the VM's own clients by forwarding the methods of METHODS unchanged."""

    def __init__(self, path: Path, forward: Forward, mode: int = SOCKET_MODE) -> None:
        """`forward` asks dom0 and raises CallError with its refusal. `mode` is the socket's."""
        self._path = path
        self._mode = mode
        self._forward = forward
        self._places = trio.Semaphore(FORWARDS_MAX)
        self._next = 0.0  # when the next request may be sent, if the burst is used up
        self._handlers: dict[str, Handler] = {method: self._handler(method) for method in METHODS}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() when clients can connect."""
        async with await listen_unix(self._path, self._mode) as listener:
            task_status.started()
            await serve_clients(listener, PROGRAM, _refusal, self._serve)

    async def _serve(self, stream: UnixStream) -> None:
        try:
            peer = Peer(
                stream,
                program=PROGRAM,
                handlers=self._handlers,
                notices={},
                default_handler=_not_here,
                name="client",
            )
            await peer.run()
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            if (more := throttle.more("a client failed")) is not None:
                log.info("a client failed: %s%s", error, more)
        except Exception:
            if (more := throttle.more("serving a client failed")) is not None:
                log.exception("serving a client failed%s", more)
        finally:
            await trio.aclose_forcefully(stream)

    def _handler(self, method: str) -> Handler:
        async def handle(_peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
            size = len(encode([params]))
            if size > REQUEST_MAX:
                message = (
                    f"a request of {size} bytes is not passed on to dom0: {REQUEST_MAX} may be"
                )
                raise CallError("usage", message)
            async with self._places:
                await self._pace(size)
                return await self._forward(method, params)

        return handle

    async def _pace(self, size: int) -> None:
        price = 1 + size / BYTES_PER_FRAME
        self._next = max(self._next, trio.current_time()) + price / RATE
        await trio.sleep_until(self._next - BURST / RATE)


async def _not_here(_peer: Peer, method: str, _params: dict[str, Any]) -> dict[str, Any]:
    message = f"dom0 alone serves {request_to(method)}, and this is a VM"
    raise CallError("unknown_method", message)


def _refusal(_stream: UnixStream, served: int) -> CallError | None:
    """Why a client is not served; None if it is."""
    if served < CLIENTS_MAX:
        return None
    if (more := throttle.more("refused a client")) is not None:
        log.warning("refused a client: %d are connected%s", served, more)
    return _full()


def _full() -> CallError:
    message = f"{CLIENTS_MAX} programs of this VM are connected to its agent, which takes no more"
    hint = "end some of them: ss -xp shows which they are"
    return CallError("quota", message, {"hint": hint})
