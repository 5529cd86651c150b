"""One call: from the agent's connection to its end, in a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pedos_host import _link
from pedos_host.system_errors import what_is_wrong
from pedos_protocol import keeper_link
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.keeper_link import (
    AGENT,
    DESCRIPTORS,
    EXITED,
    PACKET_MAX,
    SIGNALLED,
    Connected,
    Ended,
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
    said,
)

from pedos_keeper import connecting, environment, lookup, service_config, sessions
from pedos_keeper.children import Child, Children
from pedos_keeper.control_groups import CallGroup
from pedos_keeper.environment import Environment
from pedos_keeper.lookup import Program, Service, Unusable
from pedos_keeper.service_config import ConfigError, ServiceConfig

log = logging.getLogger(__name__)

# Seconds. An agent sends it as its first act.
RUN_SECONDS: Final = 10.0
# Seconds. A person logs in; a call that has waited for longer has been forgotten.
SESSION_SECONDS: Final = 600.0
# Seconds between two looks for a session, by processes that a login has already made wait.
SESSION_LOOK: Final = 0.5

# What nearly every call has.
_NO_OPTIONS: Final = (False, False, False)
_PLAINLY_SPAWNED: Final = keeper_link.build(Spawned(*_NO_OPTIONS))
_FINISHED: Final = keeper_link.build(Finished())


class Place(NamedTuple):
    """What calls of one keeper have in common.

    `user` is None in local mode: all users are one there, and nobody waits for a session.
    `environment` is that of all services, `group` the folder for the control groups of calls, if it
    may make any.
    """

    user: str | None
    services: Sequence[str]
    configurations: Sequence[str]
    children: Children
    environment: Callable[[], Environment]
    group: Path | None


class Gone(Exception):  # noqa: N818 - says what happened
    """The agent has hung up."""


class Refusal(Exception):  # noqa: N818 - says what happened
    """The answer to `Run` that ends the call."""

    def __init__(self, packet: NotFound | Problem | ForUser) -> None:
        super().__init__(packet)
        self.packet = packet


class Call:
    """One call. `run` in a thread serves it."""

    def __init__(self, connection: int, place: Place) -> None:
        """Whoever gives the connection closes it."""
        self._connection = connection
        self._place = place

    def run(self) -> None:
        """Serve the call until the agent hangs up, or has finished it."""
        try:
            self._serve()
        except Gone:
            pass
        except (RemoteProtocolError, OSError) as error:
            log.warning("a call breaks off: %s", what_is_wrong(error))
        except Exception:
            log.exception("a call breaks off")

    def _serve(self) -> None:
        first, descriptors = self._receive_first()
        if isinstance(first, Kill):
            self._kill_left(environment.mark_of(first.call))
            return
        run = first
        try:
            try:
                config, service = self._looked_up(run)
                extra = self._session(run) if self._waits(config) else {}
                child = self._begin(run, service, config, descriptors, extra)
            finally:
                _link.close_all(descriptors)
        except Refusal as refusal:
            if not isinstance(refusal.packet, ForUser):
                log.info("%s of %s: %s", run.service, run.source, refusal.packet.text)
            self._send(refusal.packet)
            return
        with child or contextlib.nullcontext():
            self._heed(child, config)

    def _kill_left(self, mark: bytes) -> None:
        """End what a call has left, and say whether that is done. Gone, OSError."""
        text = "it does not end at once"
        try:
            is_done = self._place.children.kill_marked(mark)
        except OSError as error:
            is_done, text = False, what_is_wrong(error)
        self._send(Killed() if is_done else Problem(said(text)))

    # What it is

    def _looked_up(self, run: Run) -> tuple[ServiceConfig, Service]:
        """Its configuration, and the service. Refusal."""
        place = self._place
        if not run.is_forced:
            plain = lookup.find_plain(
                run.service, run.argument, place.configurations, place.services
            )
            if plain is not None:
                return service_config.PLAIN, plain
        return self._configured(run), self._found(run)

    def _configured(self, run: Run) -> ServiceConfig:
        """The service's configuration. Refusal."""
        try:
            config = service_config.find(run.service, run.argument, self._place.configurations)
        except ConfigError as error:
            raise Refusal(Problem(said(str(error)))) from error
        except OSError as error:
            raise _problem(error) from error
        user, here = config.force_user, self._place.user
        if here is None:
            return config
        if run.is_forced and user != here:
            # Another user's keeper has said so, and it is not what the file says.
            raise Refusal(Problem(said(f"{run.service} is not forced to run as {here}")))
        if user not in (None, here):
            raise Refusal(ForUser(str(user)))
        return config

    def _found(self, run: Run) -> Service:
        """The service. Refusal."""
        try:
            service = lookup.find(run.service, run.argument, self._place.services)
        except Unusable as error:
            raise Refusal(Problem(said(str(error)))) from error
        except OSError as error:
            raise _problem(error) from error
        if service is None:
            name = run.service + (run.argument if run.argument != "+" else "")
            raise Refusal(NotFound(said(f"there is no service {name}")))
        return service

    # Its session

    def _waits(self, config: ServiceConfig) -> bool:
        return config.wait_for_session and self._place.user is not None

    def _session(self, run: Run) -> dict[str, str]:
        """What the user's session adds to the environment, when there is one. Refusal, Gone."""
        uid = os.getuid()
        until = time.monotonic() + SESSION_SECONDS
        if not sessions.has_session(uid):
            self._send(Waiting(said(f"{run.service} waits for a session of {self._place.user}")))
        while not sessions.has_session(uid):
            left = until - time.monotonic()
            if left <= 0:
                text = f"{self._place.user} has no session after {SESSION_SECONDS:.0f} s"
                raise Refusal(Problem(said(text)))
            self._check_wanted(min(left, SESSION_LOOK))
        return sessions.environment(self._place.children, self._place.environment(), uid)

    # Its start

    def _check_wanted(self, seconds: float) -> None:
        """Gone if the agent has ended the call, or hung up, or does within so many seconds: what
        stood still, or waited, begins nothing for nobody."""
        if self._says_something(seconds):
            self._receive()  # whatever it is: there is nothing to signal, nor to finish, yet
            raise Gone

    def _begin(
        self,
        run: Run,
        service: Service,
        config: ServiceConfig,
        descriptors: Sequence[int],
        extra: dict[str, str],
    ) -> Child | None:
        """Start it, or connect to it (None). Refusal, Gone."""
        # Who has the call killed from now on has that killed, too.
        with self._place.children.expecting(environment.mark_of(run.call)):
            self._check_wanted(0)
            if isinstance(service, Program):
                return self._start(run, service, descriptors, extra)
            self._connect(run, service, config)
            return None

    def _start(
        self, run: Run, program: Program, descriptors: Sequence[int], extra: dict[str, str]
    ) -> Child:
        """Its process. Refusal."""
        arguments = [program.path, *filter(None, (run.argument[1:],))]
        variables = self._place.environment().lines_with({**extra, **environment.of_call(run)})
        mark = environment.mark_of(run.call)
        group = self._new_group(run)
        try:
            return self._place.children.start(
                program.path, arguments, variables, descriptors, group, mark
            )
        except OSError as error:
            if group is not None:
                group.close()
            if error.errno == errno.ENOENT:
                # The file is there: a script whose first line leads nowhere.
                text = f"{program.path} cannot be run: its interpreter does not exist"
                raise Refusal(Problem(said(text))) from error
            raise _problem(error, program.path) from error

    def _new_group(self, run: Run) -> CallGroup | None:
        if self._place.group is None:
            return None
        try:
            return CallGroup(self._place.group / run.call)
        except OSError as error:
            log.warning("a call has no control group: %s", what_is_wrong(error))
            return None

    def _connect(self, run: Run, service: connecting.Listening, config: ServiceConfig) -> None:
        """Connect to it, and give the agent the connection. Refusal."""
        before = b"" if config.skip_service_descriptor else descriptor_line(run)
        try:
            connected = connecting.connect(service, before)
            try:
                self._send(Connected(*_options(config)), connected)
            finally:
                os.close(connected)
        except OSError as error:
            where = connecting.name_of(service)
            text = f"{run.service}: cannot connect to {where}: {error.strerror or error}"
            raise Refusal(Problem(said(text))) from error

    # Its run

    def _heed(self, child: Child | None, config: ServiceConfig) -> None:
        """Do as the agent says until it has finished the call. One that goes before, or is not
        understood any more, has lost the caller. RemoteProtocolError, Gone, OSError."""
        try:
            if child is not None:
                self._tell_begun(child, _options(config))
            self._attend(child)
        except (Gone, OSError, RemoteProtocolError):
            if child is not None and self._is_ended():
                child.kill()
            elif child is not None:
                _caller_is_gone(child, config)
            raise

    def _is_ended(self) -> bool:
        """Whether the agent had ended the call, and then hung up. A send fails because of the
        second while the first is still unread; so does the first read then, hence the two tries."""
        for _ in range(2):
            with contextlib.suppress(Gone, OSError, RemoteProtocolError):
                while self._says_something(0):
                    packet = self._receive()
                    if isinstance(packet, Signal) and packet.number == signal.SIGKILL:
                        return True
        return False

    def _tell_begun(self, child: Child, options: tuple[bool, bool, bool]) -> None:
        """Gone, OSError."""
        is_plain = options == _NO_OPTIONS
        self._send_raw(_PLAINLY_SPAWNED if is_plain else keeper_link.build(Spawned(*options)))
        if child.group is not None:
            with contextlib.suppress(OSError):  # then its session stands for it
                child.group.take(child.pid)

    def _attend(self, child: Child | None) -> None:
        """Tell the agent when the main process has ended, and send it signals."""
        process = -1 if child is None else child.file
        while True:
            has_ended, untrusted = self._attended(process)
            if has_ended and child is not None and (code := child.end()) is not None:
                process = -1  # from now on there is only the agent to wait for
                self._send(_ended(code))
            if untrusted is None:
                continue
            packet = self._parsed(untrusted)
            if isinstance(packet, Finished):
                return
            if isinstance(packet, Signal) and child is not None:
                child.signal(packet.number)

    # The link

    def _receive_first(self) -> tuple[Run | Kill, list[int]]:
        """The first packet, and its descriptors. RemoteProtocolError, Gone, OSError."""
        try:
            untrusted, descriptors = _link.first(
                self._connection, PACKET_MAX + 1, int(RUN_SECONDS * 1000)
            )
        except BlockingIOError:
            text = f"the agent says nothing within {RUN_SECONDS:.0f} s"
            raise RemoteProtocolError(text) from None
        try:
            if not untrusted:
                raise Gone
            first = keeper_link.parse(untrusted, AGENT)
            passes = {Run: DESCRIPTORS, Kill: (0,)}.get(type(first), ())
            if not isinstance(first, Run | Kill) or len(descriptors) not in passes:
                raise RemoteProtocolError(
                    f"a call begins with {type(first).__name__} and {len(descriptors)} descriptors"
                )
        except BaseException:
            _link.close_all(descriptors)
            raise
        return first, descriptors

    def _says_something(self, seconds: float) -> bool:
        """Whether the agent does, or hangs up, within so many seconds."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _receive(self) -> Packet:
        """A later packet. RemoteProtocolError, Gone, OSError."""
        _, untrusted = self._attended(-1)
        assert untrusted is not None
        return self._parsed(untrusted)

    def _attended(self, process: int) -> tuple[bool, bytes | None]:
        """See `_link.attend`. OSError."""
        try:
            return _link.attend(self._connection, process, PACKET_MAX + 1)
        except ConnectionResetError:  # it has not read all that it was told
            return False, b""

    def _parsed(self, untrusted: bytes) -> Packet:
        """A later packet. RemoteProtocolError, Gone."""
        if untrusted == _FINISHED:
            return Finished()
        if not untrusted:
            raise Gone
        packet = keeper_link.parse(untrusted, AGENT)
        if isinstance(packet, Run | Kill):
            raise RemoteProtocolError(f"a {type(packet).__name__} in the middle of a call")
        return packet

    def _send(self, packet: Packet, passed: int = -1) -> None:
        """Gone, OSError. An agent reads at once: the few packets of a call always have room."""
        self._send_raw(keeper_link.build(packet), passed)

    def _send_raw(self, raw: bytes, passed: int = -1) -> None:
        try:
            _link.send(self._connection, raw, passed)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None


def descriptor_line(run: Run) -> bytes:
    """What a service that listens is told of its call, before anything else."""
    words = [run.service + run.argument, run.source]
    if run.target:
        words += [environment.target_type(run.target), run.target.removeprefix("@")]
    return " ".join(words).encode("ascii") + b"\0"


def _options(config: ServiceConfig) -> tuple[bool, bool, bool]:
    return config.exit_on_client_eof, config.exit_on_service_eof, config.forward_signals


def _ended(code: int) -> Ended:
    return Ended(EXITED, code) if code >= 0 else Ended(SIGNALLED, -code)


def _problem(error: OSError, where: str = "") -> Refusal:
    return Refusal(Problem(said(what_is_wrong(error, where))))


def _caller_is_gone(child: Child, config: ServiceConfig) -> None:
    """What becomes of a service whose caller has gone. Its descriptors are at their end."""
    if config.on_caller_gone == service_config.KILL:
        child.kill()
    elif config.on_caller_gone == service_config.HUP:
        child.signal(signal.SIGHUP)
