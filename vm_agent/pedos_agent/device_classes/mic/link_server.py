"""The socket of the user's `pedos-sound`: one session at a time, that of the user who may have the
microphones.

Any user may connect. Who may not have them, or comes second, is told why and is disconnected; such
a connection keeps no other one waiting.
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import Final

import trio
from pedos_host.folder_watch import FolderWatch
from pedos_host.packets import PacketSocket
from pedos_host.system_errors import what_is_wrong
from pedos_host.throttle import throttle
from pedos_host.unix import PacketListener, listen_packets
from pedos_protocol.names import harmless_text
from pedos_protocol.sound_link import DATAGRAM_MAX, Refused, build

from pedos_agent.device_classes.mic import who
from pedos_agent.device_classes.mic.session import Session
from pedos_agent.settings import Settings
from pedos_agent.system.revision import Revision
from pedos_agent.system.uevents import keep_hearing

log = logging.getLogger(__name__)

SOCKET_MODE: Final = 0o666  # SO_PEERCRED says who it is
# Seconds until the next accept when the process is out of descriptors.
ACCEPT_RETRY: Final = 0.1
# How long one that is refused may take to read the reason, how many may do so at once (others may
# miss it), and what of each is still read: what a program says first is three messages.
REFUSED_SECONDS: Final = 1.0
REFUSED_MAX: Final = 16
REFUSED_MESSAGES: Final = 8

NOBODY: Final = "nobody is logged in who has sound (pedos-sound does not run)"


class LinkServer:
    """Serves the session that has the microphones of this VM. `changed` is bumped when that begins
    or ends, and when it has other microphones."""

    def __init__(self, path: Path, settings: Settings, seats: Path = who.SEATS) -> None:
        """Nothing listens before `run`."""
        self.changed = Revision()
        self.session: Session | None = None
        self._path = path
        self._settings = settings
        self._seats = seats
        self._sessions = 0
        self._refused = 0  # that are still connected

    @property
    def usable(self) -> Session | None:
        """The session, if its sound server answers."""
        session = self.session
        return session if session is not None and not session.lack else None

    @property
    def lack(self) -> str:
        """Why there is no `usable` one, for a person."""
        return NOBODY if self.session is None else self.session.lack

    async def until_usable(self) -> Session:
        """The session, as soon as its sound server answers."""
        while True:
            seen = self.changed.number
            if (session := self.usable) is not None:
                return session
            await self.changed.after(seen)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() when a session can connect. OSError: none ever can."""
        listener = await listen_packets(self._path, SOCKET_MODE)
        try:
            async with trio.open_nursery() as nursery:
                if self._settings.xen and self._settings.sound_user is None:
                    nursery.start_soon(self._follow_seat)
                nursery.start_soon(self._accept, listener, nursery)
                task_status.started()
                await trio.sleep_forever()
        finally:
            listener.close()

    async def _accept(self, listener: PacketListener, nursery: trio.Nursery) -> None:
        while True:
            try:
                packets = PacketSocket(await listener.accept_socket())
            except OSError as error:
                if (more := throttle.more("no session could be accepted")) is not None:
                    log.error("pedos-sound could not connect: %s%s", what_is_wrong(error), more)
                await trio.sleep(ACCEPT_RETRY)
                continue
            taken = False
            try:
                taken = await self._admit(packets, nursery)
            finally:
                if not taken:
                    packets.close()

    async def _admit(self, packets: PacketSocket, nursery: trio.Nursery) -> bool:
        """Begin a session, or say why not."""
        uid = packets.uid
        try:
            rule = await who.rule(self._settings, self._seats)
            why = rule.refusal(uid)
        except PermissionError as error:
            why = str(error)
        if why is None and (other := self.session) is not None:
            if other.uid == uid:
                why = "pedos-sound of this user is connected already"
            elif rule.refusal(other.uid) is None:
                why = f"the session of user {other.uid} has the microphones"
            else:
                self._replace(other)
        if why is not None:
            return self._refuse(packets, why, nursery)
        self._sessions += 1
        session = self.session = Session(packets, self._sessions, self.changed.bump)
        self.changed.bump()
        nursery.start_soon(self._serve, session)
        return True

    async def _serve(self, session: Session) -> None:
        why = "this agent failed"
        try:
            why = await session.run()
        except Exception:
            # Everything else that the agent carries goes on.
            if (more := throttle.more("serving a session failed")) is not None:
                log.exception("serving pedos-sound failed unexpectedly%s", more)
        finally:
            if self.session is session:
                self.session = None
            self.changed.bump()
        if (more := throttle.more("a session has ended")) is not None:
            log.info("the session of user %d ended: %s%s", *(session.uid, why, more))

    def _refuse(self, packets: PacketSocket, why: str, nursery: trio.Nursery) -> bool:
        """Say why; whether the connection stays for a moment."""
        if (more := throttle.more("refused a session")) is not None:
            log.info("refused pedos-sound of user %d: %s%s", *(packets.uid, why, more))
        try:
            packets.send_now(build(Refused(harmless_text(why))))
        except OSError:  # it has gone
            return False
        if self._refused >= REFUSED_MAX:
            return False
        self._refused += 1
        nursery.start_soon(self._let_go, packets)
        return True

    async def _let_go(self, packets: PacketSocket) -> None:
        """Take in what a refused one has sent: with that unread, the kernel would end the
        connection without our last message."""
        try:
            packets.finish()
            with trio.move_on_after(REFUSED_SECONDS), contextlib.suppress(OSError):
                for _ in range(REFUSED_MESSAGES):
                    if not await packets.receive(DATAGRAM_MAX):
                        break
        finally:
            self._refused -= 1
            packets.close()

    def _replace(self, session: Session) -> None:
        session.end("another user is at the screen")
        self.session = None

    async def _follow_seat(self) -> None:
        """End a session when another user comes to the screen."""
        seen = Revision()

        async def hear(watch: FolderWatch) -> None:
            while True:
                await watch.changed()
                seen.bump()

        async with trio.open_nursery() as nursery:
            await nursery.start(keep_hearing, partial(FolderWatch, [self._seats]), hear, [seen])
            number = -1
            while True:
                number = await seen.after(number)
                if (session := self.session) is not None and not await self._may_keep(session):
                    self._replace(session)
                    self.changed.bump()

    async def _may_keep(self, session: Session) -> bool:
        """Whether it may go on. It may, where that cannot be told: the screen was its own."""
        try:
            return (await who.rule(self._settings, self._seats)).may_keep(session.uid)
        except PermissionError as error:
            if (more := throttle.more("the seat cannot be told")) is not None:
                log.warning("%s%s", error, more)
            return True
