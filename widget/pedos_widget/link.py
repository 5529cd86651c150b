"""A connection to dom0's service that is made again whenever it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from pedos_cli.client import Places, Unreachable
from pedos_host.backoff import Backoff
from pedos_host.unix import connect_unix
from pedos_protocol.connection import VERSIONS
from pedos_protocol.errors import CallError, ProtocolError, RemoteProtocolError
from pedos_protocol.events import REFUSED, refusal
from pedos_protocol.sockets import DESKTOP_GROUP
from pedos_vchan.peer import Peer, open_peer
from pedos_vchan.quota import NO_LIMIT
from pedos_vchan.reading import HELLO_TIMEOUT

from .attempts import Attempts
from .i18n import _

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any, NoReturn

    from pedos_vchan.peer import Handler

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
"""Seconds between attempts at a service that is there and does not serve, doubling: what hinders it
passes without a sign, and a person who repairs it should not have to wait long. `attempts` has
those at one that is not there."""

ABSENT = (FileNotFoundError, ConnectionRefusedError, PermissionError)
"""What passes with a sign alone: nobody listens, or this user may not connect."""

CONNECT_S = 5.0
"""Seconds in which the service accepts a connection; a working one accepts it at once."""


class Link:
    """One connection at a time to the service at one of the `Places` for `path`.

    `serve` runs while there is one, until it ends; `lost` is called each time that there is none,
    with a sentence that says why. What the service asks and tells goes to `handlers` and `notices`.
    """

    def __init__(
        self,
        path: str | None,
        program: str,
        serve: Callable[[Peer], Awaitable[None]],
        lost: Callable[[str], None],
        *,
        handlers: Mapping[str, Handler] | None = None,
        notices: Mapping[str, Handler] | None = None,
    ) -> None:
        self._path = path
        self._place = Places(path).place  # that was tried last
        self._program = program
        self._serve = serve
        self._lost = lost
        self._handlers = dict(handlers or {})
        self._notices = {**(notices or {}), REFUSED: self._refused}
        self._peer: Peer | None = None
        self._why = _("Not connected to dom0's service yet.")
        self._refusal = ""
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        self._attempts = Attempts()
        self._is_there = False  # at the last attempt

    @property
    def version(self) -> int:
        """Of the protocol, that the service speaks; the newest while there is none."""
        return VERSIONS[1] if self._peer is None else self._peer.version

    def works(self) -> None:
        """The service does what it is asked: the next attempt after this connection is soon."""
        self._backoff.over()
        self._attempts.succeeded()

    def wanted(self) -> None:
        """Somebody looks: the next attempt is now, if there is no connection."""
        self._attempts.wanted()

    def give_up(self, why: str) -> None:
        """End this connection, over which nothing comes any more. The next one is there as soon as
        the service goes on."""
        if self._peer is not None:
            self._refusal = why
            self._peer.close()

    async def call(
        self, method: str, params: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """The service's answer. CallError, or Unreachable if there is no connection, or none any
        more (`lost`): then it may have done what was asked, or not."""
        peer = self._peer
        if peer is None:
            await trio.lowlevel.checkpoint()
            raise Unreachable(self._place, self._why)
        try:
            return await peer.call(method, params, timeout=timeout_s)
        except CallError as error:
            if error.code == "unavailable" and not peer.is_open:
                why = _("The connection to dom0's service broke.")
                raise Unreachable(self._place, why, lost=True) from error
            raise

    async def run(self) -> NoReturn:
        """Connects, serves, and begins again, until cancelled."""
        try:
            await self._run()
        finally:
            self._attempts.close()

    async def _run(self) -> NoReturn:
        said = ""
        while True:
            self._refusal = ""
            why = await self._once()
            self._peer = None
            self._why = self._refusal or why
            if self._why != said:
                said = self._why
                logger.info("%s", said)
            self._lost(self._why)
            if self._is_there:
                await trio.sleep(self._backoff.after_failure())
            else:
                await self._attempts.next(self._place)

    async def _once(self) -> str:
        """One connection, from its beginning to its end; why it has ended, as a sentence."""
        self._is_there = True
        try:
            with trio.fail_after(CONNECT_S):
                stream = await self._connect()
        except trio.TooSlowError:
            return _("dom0's service takes no connection at {path}.").format(path=self._place)
        except OSError as error:
            self._is_there = not isinstance(error, ABSENT)
            return _why_none(self._place, error)
        opened_at = trio.current_time()
        try:
            async with open_peer(
                stream,
                program=self._program,
                handlers=self._handlers,
                notices=self._notices,
                name="dom0's service",
                frames_per_second=NO_LIMIT,
            ) as peer:
                self._peer = peer
                with trio.CancelScope() as scope:
                    peer.start_soon(_cancel_at_end, scope)
                    await self._serve(peer)
        except RemoteProtocolError as error:
            logger.warning("dom0's service breaks the protocol: %s", error)
            # One that hangs says no hello, which is a breach as well.
            is_silent = trio.current_time() >= opened_at + HELLO_TIMEOUT and self._peer is None
            return _why_not_understood(is_silent=is_silent)
        except CallError as error:
            if error.code == "unknown_method":
                return _("dom0's service is older than this program, and has to be upgraded first.")
            if error.code != "unavailable":
                return _("dom0's service does not answer: {reason}.").format(reason=error.message)
        except (trio.BrokenResourceError, ProtocolError) as error:
            logger.debug("the connection ended: %s", error)
        return _("The connection to dom0's service has ended.")

    async def _connect(self) -> trio.SocketStream:
        places = Places(self._path)
        while True:
            self._place = places.place
            try:
                return await connect_unix(self._place)
            except OSError as error:
                if not places.is_another_after(error):
                    break
        self._place = places.place
        assert places.error is not None
        raise places.error

    async def _refused(self, _peer: Peer, untrusted_params: dict[str, Any]) -> None:
        error = refusal(untrusted_params)
        self._refusal = _("dom0's service refuses this program: {reason}.").format(
            reason=error.message
        )
        await trio.lowlevel.checkpoint()


async def _cancel_at_end(scope: trio.CancelScope) -> None:
    """As a task of the connection, ends with it."""
    try:
        await trio.sleep_forever()
    finally:
        scope.cancel()


def _why_not_understood(*, is_silent: bool) -> str:
    if is_silent:
        return _("dom0's service does not answer.")
    return _("dom0's service cannot be understood; perhaps it is of another version.")


def _why_none(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return _("dom0's service does not run: there is no socket at {path}.").format(path=path)
    if isinstance(error, ConnectionRefusedError):
        return _("dom0's service does not run: nothing listens at {path}.").format(path=path)
    if isinstance(error, PermissionError):
        text = _("This user may not use dom0's service at {path}; members of group {group} may.")
        return text.format(path=path, group=DESKTOP_GROUP)
    reason = error.strerror or str(error)
    return _("dom0's service cannot be reached at {path}: {reason}.").format(
        path=path, reason=reason
    )
