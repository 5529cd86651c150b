"""The keepers of this VM's users, which run services for the agent.

The agent may do nothing as another user. systemd starts the keeper of a user whose socket is
enabled (pedos-run@USER.socket) with the first call; in local mode there is one keeper for all.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pwd
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import trio
from pedos_host.in_time import in_time
from pedos_host.packets import PacketSocket
from pedos_host.passed import closer
from pedos_host.plain_unix import short_path
from pedos_host.threads import to_thread
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.keeper_link import (
    KEEPER,
    PACKET_MAX,
    Connected,
    Finished,
    ForUser,
    Kill,
    Killed,
    NotFound,
    Packet,
    Problem,
    Run,
    Signal,
    Spawned,
    Waiting,
    build,
    parse,
    said,
)
from pedos_vchan.service_start import ask_keeper

from pedos_agent.system.reading import words

log = logging.getLogger(__name__)

#: Where systemd makes the sockets of keepers, each named after its user.
FOLDER: Final = Path("/run/pedos-run")
#: The first user that an installation makes, for whom services run that name no user.
FIRST_UID: Final = 1000
# Seconds until a keeper has said its first word. systemd starts one in less than one, on an
# emulated machine in two; dom0 waits for ten.
FIRST_WORD_SECONDS: Final = 8.0
_NO_PROTOCOL: Final = "its keeper does not keep to the protocol: "
_UNREAD: Final = "its keeper has ended before it was started"

# Seconds until a keeper that could not end what a call has left is asked again; twice as many each
# time, up to the second.
END_AGAIN_SECONDS: Final = 1.0
END_AGAIN_SECONDS_MAX: Final = 10.0
# Hang-ups without a word after each other, each of which may be by chance: a keeper that is full
# may not have read the question. One that has no other answer is of an older version, or cannot
# start, and then what it kept has ended.
HANG_UPS_MAX: Final = 5
# There is none. What it kept has ended with it: see its unit, and in local mode its guard.
_NO_KEEPER: Final = frozenset((errno.ENOENT, errno.ECONNREFUSED))
_HANG_UP: Final = frozenset((errno.ECONNRESET, errno.EPIPE))

# What a keeper hears at last in nearly every call.
_FINISHED: Final = build(Finished())
# What one hears that may yet start what nobody waits for.
_UNWANTED: Final = build(Signal(int(signal.SIGKILL)))

Answer: TypeAlias = Waiting | Spawned | Connected | ForUser | NotFound | Problem
_ANSWERS: Final = (Waiting, Spawned, Connected, ForUser, NotFound, Problem)


class _Lacking(Exception):  # noqa: N818 - says what is lacking
    """No keeper runs the service; `str()` says why, and what to do."""


class _HungUp(_Lacking):
    """The keeper has ended before it has taken the call: no service runs."""


#: A call that a keeper has, and our ends of the streams of its service: -1 if there is none.
Begun: TypeAlias = "tuple[KeeperCall, list[int]]"


@attrs.frozen
class Keepers:
    """Where the keepers of this VM are: in `folder`, or the `only` one for all users."""

    folder: Path = FOLDER
    only: Path | None = None

    _only_raw: bytes | None = attrs.field(init=False)

    @_only_raw.default
    def _raw(self) -> bytes | None:
        return None if self.only is None else os.fsencode(self.only)

    def begin(self, run: Run, user: str | None, with_stderr: bool) -> Begun | None:
        """Give the call to the keeper of `user` without waiting, and not hear it yet, with streams
        for the service.

        None: no keeper has the call. `run` may have to wait for one, or says what is wrong.
        """
        path = self._only_raw or (os.fsencode(f"{self.folder}/{user}.sock") if user else None)
        if path is None:
            return None
        try:
            *ours, connection = ask_keeper(path, build(run), with_stderr)
        except OSError:
            return None
        return KeeperCall(connection, None, owner=path), ours

    async def run(
        self, run: Run, user: str | None, descriptors: Sequence[int], forced: ForUser | None = None
    ) -> KeeperCall:
        """Have a service run as `user`, or as the one for all that name none; or as the one that
        the keeper of that user has named.

        The descriptors stay this program's. What goes wrong is the call's answer: `Problem`.
        """
        try:
            if self.only is not None:
                return await _ask(self.only, run, user or "", descriptors)
            if forced is None:
                call = await self._ask(run, user or await _first_user(), descriptors)
                if not isinstance(call.answer, ForUser):
                    return call
                call.close()
                forced = call.answer
            # The keeper of the other user looks into the file by itself.
            call = await self._ask(run._replace(is_forced=True), forced.user, descriptors)
            if isinstance(call.answer, ForUser):
                call.close()
                raise _Lacking(f"the configuration of {run.service} has just changed: try again")
        except _Lacking as lacking:
            return KeeperCall(None, Problem(said(str(lacking))))
        return call

    async def _ask(self, run: Run, user: str, descriptors: Sequence[int]) -> KeeperCall:
        return await _ask(self.folder / f"{user}.sock", run, user, descriptors)


class KeeperCall:
    """A call that a keeper has taken. `answer` is its latest word, None before the first; after
    `Waiting`, `next_answer` waits for the one that counts. `service` is the socket that came with
    `Connected`."""

    def __init__(
        self,
        connection: PacketSocket | int | None,
        answer: Answer | None,
        service: int | None = None,
        *,
        owner: bytes = b"",
    ) -> None:
        """Takes all of them over. Without a connection the answer is final. `owner` is the path of
        the keeper, and the owner of what comes over the connection (`passed.Closer`)."""
        self.answer: Answer | None = answer
        self.owner: Final = owner
        self._connection = connection
        self._service = service

    def fileno(self) -> int:
        """That of the connection."""
        connection = self._connection
        assert connection is not None
        return connection if isinstance(connection, int) else connection.fileno()

    def _packets(self) -> PacketSocket | None:
        """The connection, for what the call's thread leaves to the agent; few calls need it."""
        if isinstance(self._connection, int):
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, self._connection)
            self._connection = PacketSocket(connected, self.owner)
        return self._connection

    async def first_answer(self, error: int, user: str | None) -> None:
        """Take the first word, which is there, or with `error` what has come instead. Without an
        `answer` then, the keeper has ended before it had taken the call."""
        packets = self._packets()
        assert packets is not None
        try:
            if error == errno.EPROTO:  # see csrc/call_keeper.h
                raise _Lacking(_NO_PROTOCOL + "Connected is no answer")
            if error:
                raise _what_broke(OSError(error, os.strerror(error)))
            self.answer, self._service = await _answer(packets, user or "")
        except _HungUp:
            pass
        except _Lacking as lacking:
            self.answer = Problem(said(str(lacking)))

    async def next_answer(self) -> None:
        """Wait until the service is started, or will not be; `answer` says which then."""
        packets = self._packets()
        assert packets is not None
        try:
            self.answer, self._service = await _answer(packets, "")
        except _Lacking as lacking:
            self.answer = Problem(said(str(lacking)))

    def take_service(self) -> int:
        """The service's socket, which is the caller's from now on."""
        assert self._service is not None
        service, self._service = self._service, None
        return service

    def signal(self, number: int) -> None:
        """Send the service a signal; SIGKILL ends all that it has started."""
        self._send(Signal(int(number)))

    def finish(self) -> None:
        """The call is over in good order, as far as the keeper is concerned."""
        self._send(Finished())

    def hang_up(self) -> None:
        """Say so, while others still use the connection: `close` comes later."""
        if (packets := self._packets()) is not None:
            packets.hang_up()

    def close(self, *, is_finished: bool = False) -> None:
        """Hang up: the call is over in good order, or its caller is gone."""
        connection, self._connection = self._connection, None
        if isinstance(connection, int):
            closer.hang_up(self.owner, connection, _FINISHED if is_finished else b"")
        elif connection is not None:
            if is_finished:
                _send(connection, _FINISHED)
            if self._service is not None:
                connection.discard((self._service,))
                self._service = None
            connection.close()

    def _send(self, packet: Packet) -> None:
        if (packets := self._packets()) is not None:
            _send(packets, build(packet))


async def end_left(keeper: bytes, call: str) -> None:
    """Have the keeper at this path end all that a call has started; returns when nothing of it runs
    any more. One that stands still, or cannot do it yet, is waited for: as long the call goes on.
    """
    is_told, hang_ups, seconds = False, 0, END_AGAIN_SECONDS
    while hang_ups < HANG_UPS_MAX:
        try:
            answer = await _kill(keeper, call)
            if isinstance(answer, Killed):
                return
            if answer is None:
                why, hang_ups = "its keeper says nothing", hang_ups + 1
            else:
                why = answer.text if isinstance(answer, Problem) else "it says something else"
                hang_ups = 0
        except RemoteProtocolError as error:
            why, hang_ups = str(error), 0
        except OSError as error:
            if error.errno in _NO_KEEPER:
                return
            why = words(error)
            hang_ups = hang_ups + 1 if error.errno in _HANG_UP else 0
        if not is_told:
            log.warning("what the call %s has started may run on for now: %s", call, why)
            is_told = True
        await trio.sleep(seconds)
        seconds = min(2 * seconds, END_AGAIN_SECONDS_MAX)
    log.warning("it is not known whether what the call %s has started runs on", call)


async def _kill(keeper: bytes, call: str) -> Packet | None:
    """The answer of that keeper to `Kill`; None if it hangs up. OSError, RemoteProtocolError."""
    with contextlib.closing(PacketSocket(_connected(Path(os.fsdecode(keeper))), keeper)) as packets:
        packets.send_now(build(Kill(call)))
        untrusted, descriptors = await packets.receive_passing(PACKET_MAX, 0)
        packets.discard(descriptors)
    return parse(untrusted, KEEPER) if untrusted else None


def _send(packets: PacketSocket, raw: bytes) -> None:
    # A keeper that has ended, or does not read any more, has lost the call.
    with contextlib.suppress(OSError, trio.ClosedResourceError):
        packets.send_now(raw)


async def _ask(path: Path, run: Run, user: str, descriptors: Sequence[int]) -> KeeperCall:
    """Give the call to the keeper that listens there; to the next one, if that has just been idle
    for so long that it ends. _Lacking."""
    try:
        return await _ask_once(path, run, user, descriptors)
    except _HungUp:
        return await _ask_once(path, run, user, descriptors)


async def _ask_once(path: Path, run: Run, user: str, descriptors: Sequence[int]) -> KeeperCall:
    # Its user may have made a program of their own of it: what it passes is its own business.
    packets = PacketSocket(await _reached(path, user), os.fsencode(path))
    is_sent = False
    try:
        # One that takes no more calls says so, and may have hung up by now.
        with contextlib.suppress(BrokenPipeError):
            packets.send_now(build(run), descriptors)
            is_sent = True
        with trio.move_on_after(FIRST_WORD_SECONDS):
            answer = await _answer(packets, user, may_run=is_sent)
            return KeeperCall(packets, *answer, owner=os.fsencode(path))
        raise _Lacking(await silent(user))
    except OSError as error:
        packets.close()
        raise _Lacking(f"the keeper cannot be asked: {words(error)}") from error
    except BaseException:
        _send(packets, _UNWANTED)
        packets.close()
        raise


async def silent(user: str) -> str:
    """What is wrong when no first word has come in time."""
    try:
        problem = await _without_user(user)
    except _Lacking as lacking:
        problem = str(lacking)
    if problem is not None:
        return problem
    seconds = f"{FIRST_WORD_SECONDS:.0f} s"
    return f"the keeper of {user or 'this VM'} says nothing within {seconds}{_look_at(user)}"


async def _answer(
    packets: PacketSocket, user: str, *, may_run: bool = True
) -> tuple[Answer, int | None]:
    """The next answer, with its descriptor. `may_run`: a keeper that has ended may have begun.
    _Lacking."""
    try:
        untrusted, descriptors = await packets.receive_passing(PACKET_MAX, 1)
    except trio.ClosedResourceError:
        untrusted, descriptors = b"", []
    except OSError as error:
        raise _what_broke(error) from error
    try:
        if not untrusted and not may_run:
            raise _HungUp(_UNREAD)
        if not untrusted:
            # It has ended; or lacks something, as descriptors, and goes on.
            raise _Lacking(f"its keeper has hung up while it was being started{_look_at(user)}")
        packet = parse(untrusted, KEEPER)
        if not isinstance(packet, _ANSWERS) or len(descriptors) != isinstance(packet, Connected):
            raise RemoteProtocolError(f"{type(packet).__name__} is no answer")
    except BaseException as error:
        packets.discard(descriptors)
        if isinstance(error, RemoteProtocolError):
            raise _Lacking(f"{_NO_PROTOCOL}{error}") from error
        raise
    return packet, descriptors[0] if descriptors else None


def _what_broke(error: OSError) -> _Lacking:
    """What it means that nothing can be received."""
    if error.errno == errno.ECONNRESET:  # it has left unread what we sent
        return _HungUp(_UNREAD)
    return _Lacking(f"the keeper cannot be heard: {words(error)}")


def _connected(path: Path) -> socket.socket:
    """A connection to the keeper, which may only be about to start. OSError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connected.setblocking(False)
        with short_path(path) as short:
            connected.connect(short)
    except BaseException:
        connected.close()
        raise
    return connected


async def _reached(path: Path, user: str) -> socket.socket:
    """As `_connected`, with what is wrong in words. _Lacking."""
    try:
        return _connected(path)
    except BlockingIOError as error:
        raise _Lacking(f"too many calls wait for the keeper{_look_at(user)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise _Lacking(f"the keeper at {path} cannot be reached: {words(error)}") from error
        if (problem := await _without_user(user)) is not None:
            raise _Lacking(problem) from error
        if not user:
            raise _Lacking("the keeper of this VM does not run") from error
        raise _Lacking(
            f"no services run as {user} here: "
            f"as root, systemctl enable --now pedos-run@{user}.socket"
        ) from error


def _look_at(user: str) -> str:
    return f": systemctl status pedos-run@{user}.service" if user else ""


async def _first_user() -> str:
    """The user of services for which nobody names one. _Lacking."""
    found = await _looked_up(partial(pwd.getpwuid, FIRST_UID), f"user {FIRST_UID}")
    if found is None:
        raise _Lacking(
            f"this VM has no user with the id {FIRST_UID}, as whom services run: "
            "name one in the rule (user=root)"
        )
    return found


async def _without_user(user: str) -> str | None:
    """Why there can be no keeper of that user; None if the user is there."""
    if not user or await _looked_up(partial(pwd.getpwnam, user), f"who {user} is"):
        return None
    return f"there is no user {user} in this VM"


async def _looked_up(look: Callable[[], pwd.struct_passwd], what: str) -> str | None:
    """The user's name. _Lacking if a server for users' names does not answer."""
    try:
        return (await to_thread(partial(in_time, what, look))).pw_name
    except LookupError:
        return None
    except OSError as error:
        raise _Lacking(f"{what} cannot be told: {words(error)}") from error
