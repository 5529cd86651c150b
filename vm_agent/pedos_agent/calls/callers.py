"""The call socket: programs of this VM call services there (`pedos_protocol.call_link`).

In a VM any user may; for dom0, which decides, the VM is one party. The agent only keeps its
programs from using up the control channel, and one user from taking all places.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio
from pedos_host.packets import PacketSocket
from pedos_host.passed import closer
from pedos_host.system_errors import what_is_wrong
from pedos_host.throttle import throttle
from pedos_host.unix import NAME_LOOK, PacketListener, listen_packets
from pedos_protocol.call_link import (
    DATAGRAM_MAX,
    DESCRIPTORS,
    PROGRAM,
    VERSION,
    Call,
    Ended,
    Signal,
    Started,
    build,
    parse,
)
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_vchan.call_pump import are_streams, no_stream
from pedos_vchan.parking import Parking
from pedos_vchan.ready import ready

from pedos_agent.calls.calling import Asked, Calling, Desk, refusal

log = logging.getLogger(__name__)

SOCKET_MODE: Final = 0o666
# Programs that are connected at once: dom0 lets 64 calls of a VM run and 96 wait to be decided.
CALLERS_MAX: Final = 160
# Of them those of one user, so that another one, and root, finds a place.
OF_ONE_USER_MAX: Final = 128
# How long a connection may stay without a call, and half as long again: all are looked at now and
# then, and the clock is not asked for each. A program that makes one call sends it at once; one
# that keeps its connection for more makes a new one for nothing.
IDLE_SECONDS: Final = 60.0
IDLE_LOOKS: Final = 2
# How long one that is refused may take to say what it wants, and how many may do so at once; others
# may miss the reason.
REFUSED_SECONDS: Final = 1.0
REFUSED_MAX: Final = 16
# Seconds until the next accept when the process is out of descriptors.
ACCEPT_RETRY: Final = 0.1

STREAMS: Final = ("standard input", "standard output", "standard error")

#: Why a program may not call at all, by its connection; None if it may.
MayCall = Callable[[PacketSocket], str | None]


class CallSocket:
    """Serves the programs that connect at `path`."""

    def __init__(self, path: Path, desk: Desk, may_call: MayCall = lambda _packets: None) -> None:
        """Nothing listens before `run`."""
        self._path = path
        self._desk = desk
        self._may_call = may_call
        self._callers: set[_Caller] = set()
        self._of_user: dict[int, int] = {}
        self._refused = 0  # that are still connected
        self._trouble = trio.Event()  # the next caller cannot be accepted now
        self._empty = Parking()  # waits until there are no callers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() when programs can connect. OSError: none ever can."""
        ready()  # it takes a descriptor
        listener = await listen_packets(self._path, SOCKET_MODE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_idle)
                nursery.start_soon(self._listen, listener, nursery.start_soon)
                task_status.started()
                await trio.sleep_forever()
        finally:
            listener.close()
            for each in list(self._callers):
                each.cancel()
            with trio.CancelScope(shield=True):
                while self._callers:
                    await self._empty.park()

    async def _listen(self, listener: PacketListener, begin: Callable[..., None]) -> None:
        """Accept callers without a task, and see to the socket's name."""
        accept = partial(self._accept, listener, begin)
        while True:
            self._trouble = trio.Event()
            try:
                ready().add(listener.fileno(), accept)
                with trio.move_on_after(NAME_LOOK):
                    await self._trouble.wait()
            except OSError as error:
                self._cannot_accept(error)
            finally:
                ready().remove(listener.fileno())
            if self._trouble.is_set():
                await trio.sleep(ACCEPT_RETRY)
            listener.keep_name()

    def _accept(self, listener: PacketListener, begin: Callable[..., None]) -> None:
        """One that has connected."""
        try:
            connected, uid = listener.take_now()
        except BlockingIOError:  # it has gone
            return
        except OSError as error:
            self._cannot_accept(error)
            return
        packets = PacketSocket(connected, uid)
        why = self._refusal(packets, uid)
        if why is None:
            self._admit(_Caller(packets, uid, self._desk, begin, self._gone))
            return
        if (more := throttle.more("refused a caller")) is not None:
            log.info("refused a call of user %d: %s%s", uid, why.message, more)
        begin(self._refuse, packets, refusal(why))

    def _cannot_accept(self, error: OSError) -> None:
        """Those that are connected go on, and free some descriptors."""
        if (more := throttle.more("no caller could be accepted")) is not None:
            log.error("a program could not call: %s%s", what_is_wrong(error), more)
        self._trouble.set()

    def _admit(self, caller: _Caller) -> None:
        self._callers.add(caller)
        self._of_user[caller.uid] = self._of_user.get(caller.uid, 0) + 1
        caller.begin()

    def _gone(self, caller: _Caller) -> None:
        self._callers.discard(caller)
        if not self._callers:
            self._empty.unpark_all()
        if left := self._of_user[caller.uid] - 1:
            self._of_user[caller.uid] = left
        else:
            del self._of_user[caller.uid]

    def _refusal(self, packets: PacketSocket, uid: int) -> CallError | None:
        if (why := self._may_call(packets)) is not None:
            return CallError("denied", why)
        if not closer.has_room(uid):
            message = "what programs of this user have passed as streams is still being closed"
            hint = "end those that hold up its end: as a socket whose data lingers, or FUSE"
            return CallError("busy", message, {"hint": hint})
        if len(self._callers) >= CALLERS_MAX:
            message = f"{CALLERS_MAX} programs of this VM call services, which is the most"
        elif self._of_user.get(uid, 0) >= OF_ONE_USER_MAX:
            message = f"{OF_ONE_USER_MAX} programs of this user call services, which is the most"
        else:
            return None
        return CallError(
            "quota", message, {"hint": "end some of them: ss -xp shows which they are"}
        )

    async def _refuse(self, packets: PacketSocket, why: Ended) -> None:
        """Say why, and take in what the program has sent: with that unread, the kernel would end
        the connection without our last message."""
        self._refused += 1
        try:
            packets.send_now(build(why))
            packets.finish()
            if self._refused <= REFUSED_MAX:
                with trio.move_on_after(REFUSED_SECONDS):
                    await packets.receive(DATAGRAM_MAX)
        except OSError:  # it has gone
            pass
        finally:
            self._refused -= 1
            packets.close()

    async def _end_idle(self) -> None:
        while True:
            await trio.sleep(IDLE_SECONDS / IDLE_LOOKS)
            for each in list(self._callers):
                each.end_if_idle()


class _Caller:
    """One connection: one call after the other. It has no task."""

    def __init__(
        self,
        packets: PacketSocket,
        uid: int,
        desk: Desk,
        begin: Callable[..., None],
        gone: Callable[[_Caller], None],
    ) -> None:
        """`begin` starts a task; `gone` is called when the connection has ended, with its call."""
        self._packets = packets
        self.uid: Final = uid
        self._desk = desk
        self._begin = begin
        self._gone = gone
        self._ready = ready()
        self._calling: Calling | None = None
        self._idle_looks = 0  # how often it was found without a call
        self._is_last = False  # no other call follows this one
        self._has_hung_up = False
        self._is_gone = False

    def begin(self) -> None:
        """Serve it until the program hangs up or breaks the rules; then end its call."""
        try:
            self._ready.add(self._packets.fileno(), self._hear)
        except OSError as error:
            self._fail(error)
            return
        self._hear()  # most have sent their call already

    def end(self) -> None:
        """End it at once; of its call nothing more is said."""
        self._ready.remove(self._packets.fileno())
        self._packets.close()
        self._hang_up()

    def cancel(self) -> None:
        """The agent ends: its call is lost, which it is told, and then hung up on."""
        if self._calling is not None:
            self._calling.cancel()
        self._hang_up()

    def end_if_idle(self) -> None:
        """Close a connection without a call for some time."""
        if self._calling is not None:
            return
        self._idle_looks += 1
        if self._idle_looks > IDLE_LOOKS:
            self._hang_up()

    def _hear(self) -> None:
        """Take one message; others' turns are between two of them."""
        if not self._packets.has_room():
            self._ready.remove(self._packets.fileno())
            self._begin(self._wait_for_room)
            return
        try:
            untrusted, descriptors = self._packets.receive_passing_now(DATAGRAM_MAX, DESCRIPTORS)
            if untrusted:
                self._take(untrusted, descriptors)
                return
            self._packets.discard(descriptors)
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError) as error:
            self._fail(error)
            return
        self._hang_up()

    async def _wait_for_room(self) -> None:
        try:
            await self._packets.until_room()
        except OSError as error:
            self._fail(error)
        else:
            if not self._has_hung_up:
                self.begin()

    def _fail(self, error: Exception) -> None:
        if (more := throttle.more("a caller failed")) is not None:
            log.info("a program of user %d failed: %s%s", *(self.uid, error, more))
        self.end()

    def _hang_up(self) -> None:
        """Nothing more is to come of it: end its call. What it is told of that still goes out."""
        if not self._has_hung_up:
            self._has_hung_up = True
            self._ready.remove(self._packets.fileno())
            if self._calling is not None:
                self._calling.give_up()
        self._leave()

    def _leave(self) -> None:
        if self._has_hung_up and self._calling is None and not self._is_gone:
            self._is_gone = True
            self._packets.close()
            self._gone(self)

    def _take(self, untrusted: bytes, descriptors: list[int]) -> None:
        """RemoteProtocolError."""
        try:
            message = parse(untrusted, PROGRAM)
            if isinstance(message, Signal) and not descriptors:
                if self._calling is not None:  # else its call has just ended
                    self._calling.signal(message.number)
                return
            if not isinstance(message, Call) or self._calling is not None:
                raise RemoteProtocolError("a message that is not its turn")
            if len(descriptors) != DESCRIPTORS:
                raise RemoteProtocolError(f"a call with {len(descriptors)} descriptors")
            self._is_last = message.is_last
            if (problem := _problem(message, descriptors)) is not None:
                self._over(refusal(CallError("usage", problem)))
                return
            asked = Asked(message, self.uid, (descriptors[0], descriptors[1], descriptors[2]))
            descriptors = []
            self._calling = Calling(self._desk, asked, self._started, self._over)
            self._calling.begin()
        finally:
            self._packets.discard(descriptors)

    def _over(self, end: Ended) -> None:
        calling, self._calling = self._calling, None
        self._idle_looks = 0
        # First: a refused program need not wait for the thread that closes.
        self._say(end)
        if calling is not None and calling.streams:
            closer.close(self.uid, calling.streams)
        if self._is_last:
            self._hang_up()
        else:
            self._leave()

    def _started(self, call: str, request: str) -> None:
        self._say(Started(call, request))

    def _say(self, message: Started | Ended) -> None:
        # What a program does not read is the end of its connection, and of its call.
        try:
            self._packets.send_now(build(message))
        except (OSError, trio.ClosedResourceError):
            self.end()


def _problem(call: Call, descriptors: list[int]) -> str | None:
    """Why this call cannot be carried, whoever is called."""
    if call.version != VERSION:
        return f"this agent speaks version {VERSION} of the call socket, and not {call.version}"
    if are_streams(*descriptors):
        return None
    for number, (name, descriptor) in enumerate(zip(STREAMS, descriptors, strict=True)):
        if (what := no_stream(descriptor, is_output=number > 0)) is not None:
            return f"{name} is {what}"
    return None
