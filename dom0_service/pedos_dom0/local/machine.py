"""The local "hypervisor": VMs are agent processes, dom0 is a service process and an agent.

The machine starts and supervises them all and answers dom0's service on run/machine.sock. It knows
nothing of devices. Every program that it started gets SIGKILL when the machine's own process dies.
Not a security boundary: all "VMs" run as the same user on the same kernel.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio
from pedos_host.system_errors import what_is_wrong
from pedos_host.unix import UnixListener, listen_unix
from pedos_host.unix_stream import UnixStream
from pedos_protocol.errors import CallError, ProtocolError, RemoteProtocolError
from pedos_protocol.machine_messages import (
    DomainChanged,
    DomainInfo,
    DomainListed,
    DomainStarted,
    parse_params,
)
from pedos_protocol.schema import to_wire
from pedos_vchan.peer import Peer

from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.local.activation import Activation
from pedos_dom0.local.layout import clear_dev
from pedos_dom0.local.supervise import RESTARTS, Supervisor
from pedos_dom0.local.words import hint_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pedos_dom0.drivers.base import DomainState
    from pedos_dom0.local.layout import Layout
    from pedos_dom0.local.supervise import Program

logger = logging.getLogger(__name__)

# Xen's first reserved domain number (DOMID_FIRST_RESERVED): ours stay within the same range.
DOMIDS_END = 0x7FF0
# dom0's service, and a person with a tool; more means a client that leaks connections.
CLIENTS_MAX = 16
# Seconds that a start waits until a program in the VM can send requests. That takes half a second;
# a slower agent is not waited for, because dom0's service gives a start 10 s.
SERVED_TIMEOUT = 5.0


class Programs(Protocol):
    """The command lines of everything that the machine runs; tests put tiny programs here."""

    def dom0(self) -> Program: ...
    def dom0_agent(self) -> Program: ...
    def agent(self, name: str, domid: int) -> Program: ...
    def sound(self, name: str) -> Sequence[Program]: ...
    def keeper(self, name: str, listener: int) -> Program: ...


class Domain:
    """One VM: halted, or an agent process under a domain number."""

    def __init__(self, name: str, autostart: bool) -> None:
        self.name = name
        self.autostart = autostart
        self.state: DomainState = "Halted"
        self.domid: int | None = None
        self.supervisor: Supervisor | None = None
        self.sound: list[Supervisor] = []  # its sound server, and the program that speaks to it
        self.keeper: Activation | None = None  # runs its services
        self.changing = trio.Lock()  # a start and a shutdown of one VM wait for each other
        self.down = trio.Event()  # of this run of the VM

    def changed(self) -> DomainChanged:
        """Its state in a notice to clients."""
        return DomainChanged(self.name, self.domid, self.state)

    def info(self) -> DomainInfo:
        """Its state in a list."""
        return DomainInfo(self.name, self.domid, self.state, self.autostart)


class Machine:
    """Start it with `nursery.start(machine.run, listener)`; end it with `machine.stop()`."""

    def __init__(
        self,
        layout: Layout,
        vms: Sequence[tuple[str, bool]],
        programs: Programs,
        *,
        restarts: int = RESTARTS,
    ) -> None:
        """`vms`: (name, autostart) in the order of the configuration. `restarts`: of each program,
        see Supervisor."""
        self._layout = layout
        self._programs = programs
        self.domains = {name: Domain(name, autostart) for name, autostart in vms}
        self._restarts = restarts
        self.dom0 = Supervisor(programs.dom0(), restarts=restarts)
        self.dom0_agent = Supervisor(
            programs.dom0_agent(),
            restarts=restarts,
            after_death=lambda: self._sweep_vm(DOM0_NAME),
        )
        self.dom0_sound = self._sound_of(DOM0_NAME)
        self.dom0_keeper = self._keeper_of(DOM0_NAME)
        self._clients: set[Peer] = set()
        self._started: list[Domain] = []  # in the order of their starts, for going down in reverse
        self._next_domid = 1  # unless `listen` finds another one in the file
        self._stopping = False
        self._stopped = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def listen(self) -> UnixListener:
        """Opens machine.sock, for `run`, and reads the next domain number; OSError if that
        fails."""
        self._next_domid = _read_domid(self._layout.next_domid)
        return await listen_unix(self._layout.machine_socket, 0o600)

    async def run(
        self,
        listener: UnixListener,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves machine.sock and keeps dom0 running until `stop`; cancellation does not end it.

        Started when both of dom0's programs are started (not yet ready: see `dom0.ready`).
        """
        with trio.CancelScope(shield=True):
            async with listener, trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(trio.serve_listeners, self._serve_client, [listener])
                await nursery.start(self.dom0.run)
                await nursery.start(self.dom0_agent.run)
                await nursery.start(_keep_services, DOM0_NAME, self.dom0_keeper)
                for each in self.dom0_sound:
                    await nursery.start(_keep_sound, DOM0_NAME, each)
                task_status.started()
                await self._stopped.wait()
                nursery.cancel_scope.cancel()
        with contextlib.suppress(OSError):
            self._layout.machine_socket.unlink()

    async def stop(self, *, force: bool = False) -> None:
        """Stops the VMs in reverse order of their starts, then dom0's agent and service."""
        self._stopping = True
        for domain in reversed(list(self._started)):
            await self.shutdown(domain, force=force)
        await self.dom0_agent.stop(force=force)
        await self.dom0_keeper.stop(force=force)
        await _stop_sound(self.dom0_sound)
        await self.dom0.stop(force=force)
        self._stopped.set()

    def kill_all(self) -> None:
        """Kills every program for good, so that `stop` has nothing to wait for."""
        supervisors = [domain.supervisor for domain in self._started]
        sound = [each for domain in self._started for each in domain.sound]
        for supervisor in (*supervisors, *sound, *self.dom0_sound, self.dom0_agent, self.dom0):
            if supervisor is not None:
                supervisor.end_now()
        for keeper in (*(domain.keeper for domain in self._started), self.dom0_keeper):
            if keeper is not None:
                keeper.end_now()

    # One VM

    async def start(self, domain: Domain) -> int:
        """Starts the VM's agent under a new domain number, and returns when it serves; a running VM
        keeps its number."""
        async with domain.changing:
            if domain.domid is not None:
                return domain.domid
            if self._stopping or self._nursery is None:
                raise CallError("unavailable", "the machine is going down", {})
            try:
                domid = self._new_domid()
                self._layout.make_vm_folders(domain.name)
            except OSError as error:
                hint = hint_for(error)
                raise CallError(
                    "failed",
                    f"cannot make {what_is_wrong(error, str(self._layout.next_domid))}",
                    {"hint": hint} if hint else {},
                ) from error
            domain.supervisor = Supervisor(
                self._programs.agent(domain.name, domid),
                restarts=self._restarts,
                after_death=lambda: self._sweep_vm(domain.name),
            )
            domain.sound = self._sound_of(domain.name)
            domain.keeper = self._keeper_of(domain.name)
            domain.domid, domain.down = domid, trio.Event()
            self._started.append(domain)
            supervisor = domain.supervisor
            # A client that disconnects must not leave half a VM; this takes milliseconds.
            with trio.CancelScope(shield=True):
                await self._nursery.start(self._live, domain, supervisor, domain.keeper)
            down = domain.down
        # Without the lock: a shutdown need not wait for this.
        with trio.move_on_after(SERVED_TIMEOUT):
            await supervisor.ready_or_ended()
        if supervisor.ended.is_set():
            await down.wait()
            data = {"hint": supervisor.hint} if supervisor.hint else {}
            why = "it was shut down" if supervisor.is_stopping else "its agent ended at once"
            raise CallError("failed", supervisor.gave_up or why, data)
        return domid

    async def _live(
        self,
        domain: Domain,
        supervisor: Supervisor,
        keeper: Activation,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """One run of a VM, from start to halt."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(_keep_services, domain.name, keeper)
                await nursery.start(supervisor.run)
                if not supervisor.ended.is_set():
                    for each in domain.sound:
                        await nursery.start(_keep_sound, domain.name, each)
                    logger.info("%s is running (domain %s)", domain.name, domain.domid)
                    await self._change(domain, "Running")
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await supervisor.ended.wait()
                    await _stop_sound(domain.sound)
                await keeper.stop()
        finally:
            # Also after an error here: `shutdown` waits for the end of this run.
            with trio.CancelScope(shield=True):
                await self._forget(domain)
        if not supervisor.is_stopping:
            logger.error("%s is halted: its agent ended for good", domain.name)
        task_status.started()

    async def _forget(self, domain: Domain) -> None:
        domid, domain.domid, domain.supervisor = domain.domid, None, None
        self._started.remove(domain)
        with contextlib.suppress(OSError):
            for socket in self._layout.vchan.glob(f"{domid}-*.sock"):
                socket.unlink(missing_ok=True)
            self._layout.client_socket(domain.name).unlink(missing_ok=True)
            self._layout.call_socket(domain.name).unlink(missing_ok=True)
            self._layout.sound_socket(domain.name).unlink(missing_ok=True)
        await self._change(domain, "Halted")
        domain.down.set()

    async def shutdown(self, domain: Domain, *, force: bool) -> None:
        """Returns when the VM is down. SIGTERM with some patience, or SIGKILL with `force`."""
        async with domain.changing:
            supervisor = domain.supervisor
            if supervisor is None:
                return
            with trio.CancelScope(shield=True):  # bounded by the supervisor's patience
                await self._change(domain, "Transient")
                await supervisor.stop(force=force)
                await domain.down.wait()
            logger.info("%s is halted", domain.name)

    async def _change(self, domain: Domain, state: DomainState) -> None:
        domain.state = state
        notice = to_wire(domain.changed())
        # This only queues: its own Peer disconnects a client that does not read, at a bound.
        for client in list(self._clients):
            with contextlib.suppress(ProtocolError):  # it has not said hello, and will list first
                await client.notify("domain.changed", notice)

    def _sound_of(self, name: str) -> list[Supervisor]:
        programs = self._programs.sound(name)
        return [Supervisor(program, restarts=self._restarts) for program in programs]

    def _keeper_of(self, name: str) -> Activation:
        program = partial(self._programs.keeper, name)
        return Activation(self._layout.keeper_socket(name), program)

    def _new_domid(self) -> int:
        """A file keeps the numbers, so that not even a later machine reuses them soon. OSError, and
        no number is used, if it cannot be written."""
        domid = self._next_domid
        taken = {domain.domid for domain in self.domains.values()}
        while not 0 < domid < DOMIDS_END or domid in taken:
            domid = domid + 1 if 0 < domid < DOMIDS_END else 1
        _write_domid(self._layout.next_domid, domid + 1)
        self._next_domid = domid + 1
        return domid

    def _sweep_vm(self, name: str) -> None:
        try:
            for line in clear_dev(self._layout.dev(name)):
                logger.info("%s", line)
        except OSError as error:
            logger.error("%s", what_is_wrong(error))

    # machine.sock

    async def _serve_client(self, stream: UnixStream) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            logger.warning("a %dth client of the machine is turned away", CLIENTS_MAX + 1)
            await stream.aclose()
            return
        peer = Peer(
            stream,
            program="pedos-local",
            handlers={
                "domain.list": self._handle_list,
                "domain.start": self._handle_start,
                "domain.shutdown": self._handle_shutdown,
            },
            notices={},
            name="machine client",
        )
        self._clients.add(peer)
        try:
            await peer.run()
        except (ProtocolError, OSError, trio.BrokenResourceError) as error:
            logger.debug("a client of the machine broke off: %s", error)
        finally:
            self._clients.discard(peer)

    async def _handle_list(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        _parse("domain.list", params)
        return to_wire(DomainListed(tuple(domain.info() for domain in self.domains.values())))

    async def _handle_start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        domain = self._domain(_parse("domain.start", params).name)
        return to_wire(DomainStarted(await self.start(domain)))

    async def _handle_shutdown(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        asked = _parse("domain.shutdown", params)
        await self.shutdown(self._domain(asked.name), force=asked.force)
        return {}

    def _domain(self, name: str) -> Domain:
        domain = self.domains.get(name)
        if domain is None:
            raise CallError("not_found", f"no VM named {name!a}", {"hint": "qvm-ls"})
        return domain


async def _keep_sound(
    name: str,
    program: Supervisor,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs a program of a VM's sound; the VM goes on without it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(program.run)
        task_status.started()
        await program.ended.wait()
    if program.gave_up is not None:
        log = program.program.log
        logger.error("%s is without sound: %s; see %s", name, program.gave_up, log)


async def _keep_services(
    name: str,
    keeper: Activation,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Have the services of a VM run; the VM goes on without."""
    try:
        await keeper.run(task_status=task_status)
    except OSError as error:
        logger.error("%s has no services: %s", name, what_is_wrong(error))
        task_status.started()


async def _stop_sound(programs: Sequence[Supervisor]) -> None:
    """The one that speaks to the server ends first, and never by force: the server may be that of
    the user's session, which would keep what this one has made in it."""
    for each in reversed(programs):
        await each.stop()


def _read_domid(path: Path) -> int:
    """The next domain number; 1 in a folder that has had no machine. OSError."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return 1
    if not re.fullmatch(r"[0-9]{1,5}\s*", text) or not 0 < int(text) <= DOMIDS_END:
        what = "this is no domain number: write one into it that no VM has had lately, as 1000"
        raise OSError(errno.EINVAL, what, str(path))
    return int(text)


def _write_domid(path: Path, domid: int) -> None:
    """In place and of fixed width: this needs no space on a full disk, and never leaves half a
    number."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(fd, b"%-5d\n" % domid, 0)
    finally:
        os.close(fd)


def _parse(method: str, params: dict[str, Any]) -> Any:
    """Typed parameters, or CallError: clients are this user's own, so a mistake is no attack."""
    try:
        return parse_params(method, params)
    except RemoteProtocolError as error:
        raise CallError("usage", str(error), {}) from None
