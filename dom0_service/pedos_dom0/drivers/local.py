"""The local driver: VMs are processes of `pedos-local`, reached over its machine.sock.

The machine outlives the service (and restarts it when it dies), so if the machine is gone, all of
local mode is stopping: `run` then raises HypervisorLost and the service ends, instead of
reconnecting for ever.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from pedos_host.system_errors import what_is_wrong
from pedos_host.unix import connect_unix
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.messages import DomainShutdown, DomainStart, parse_params, parse_result, to_wire
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

from pedos_dom0.drivers.base import DOM0_NAME, DomainInfo, DriverError, HypervisorLost
from pedos_dom0.drivers.carrier import CarriedByAgents, lacking
from pedos_dom0.drivers.subscribers import EVENTS_MAX, Subscribers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_protocol.messages import DomainChanged, DomainListed, DomainStarted

    from pedos_dom0.drivers.carrier import Carrier
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

# The machine answers from memory; only starting and stopping processes takes time. A stop waits 5 s
# for the agent to unmount before it is killed, and the machine then cleans up.
LIST_TIMEOUT = 5.0
START_TIMEOUT = 10.0
SHUTDOWN_TIMEOUT = 20.0
# From the start of a domain to its agent's first report.
BOOT_TIMEOUT = 30.0

#: By class of devices; who has one more class adds what carries it.
CARRIERS: dict[str, Carrier] = {
    "block": CarriedByAgents(),
    "usb": lacking(
        "usb",
        "needs the kernel's usbip-host in the source and vhci-hcd in the target, "
        "which the processes of local mode do not have",
    ),
    "mic": CarriedByAgents(),
    "pci": lacking(
        "pci",
        "needs a hypervisor that assigns PCI devices to halted VMs, which local mode does not have",
    ),
}


class LocalDriver:
    """Driver for local mode; see `Driver` for the interface.

    `machine` is the path of machine.sock, `vchan` the folder of the channels' sockets, `dom0_agent`
    the socket of dom0's own agent (a domain cannot have a vchan to itself).
    """

    carriers = CARRIERS
    starts_paused = False
    boot_timeout = BOOT_TIMEOUT

    def __init__(self, *, machine: str | Path, vchan: str | Path, dom0_agent: str | Path) -> None:
        self._machine_path = Path(machine)
        self._vchan = Path(vchan)
        self._dom0_agent = Path(dom0_agent)
        self._domains: dict[str, DomainInfo] = {}
        self._subscribers = Subscribers()
        self._peer: Peer | None = None
        # Why `run` ends. Raised only outside its nursery, which would wrap it into a group.
        self._lost: str | None = None
        self._scope = trio.CancelScope()
        # Events may come before the answer to the first domain.list; they are newer.
        self._listed = False
        self._early: list[DomainInfo] = []

    def domains(self) -> Mapping[str, DomainInfo]:
        return self._domains

    def knows_all(self) -> bool:
        return True  # the machine has its list in memory

    def events(self) -> trio.MemoryReceiveChannel[DomainInfo]:
        return self._subscribers.add()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            stream = await connect_unix(self._machine_path)
        except OSError as error:
            raise HypervisorLost(
                f"no machine at {self._machine_path} ({error.strerror or error}): "
                "pedos-local starts this service, and keeps the machine"
            ) from error
        peer = Peer(
            stream,
            program="pedos-dom0",
            handlers={},
            notices={"domain.changed": self._domain_changed},
            name="machine",
        )
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._serve, peer)
                    self._peer = peer
                    try:
                        listing = await peer.call("domain.list", {}, timeout=LIST_TIMEOUT)
                        self._take_list(parse_result("domain.list", listing))
                    except (CallError, ProtocolError) as error:
                        self._lose(f"the machine does not list its domains: {error}")
                    else:
                        task_status.started()
        finally:
            self._peer = None
            self._subscribers.close()
        if self._lost is not None:
            raise HypervisorLost(self._lost)

    async def _serve(self, peer: Peer, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await peer.run(task_status=task_status)
            self._lose("the machine ended the connection: local mode is going down")
        except (OSError, trio.BrokenResourceError, ProtocolError) as error:
            self._lose(f"the machine broke off: {what_is_wrong(error)}")
        if peer.their_hello is None:
            task_status.started()  # no hello came, so `run` has not reported it

    def _lose(self, why: str) -> None:
        """Ends `run` with HypervisorLost; the first reason counts."""
        self._lost = self._lost or why
        self._scope.cancel()

    def _take_list(self, listed: DomainListed) -> None:
        for domain in listed.domains:
            self._domains[domain.name] = DomainInfo(domain.name, domain.domid, domain.state)
        self._listed = True
        for early in self._early:
            self._apply(early)
        self._early.clear()

    async def _domain_changed(self, _peer: Peer, params: dict[str, Any]) -> None:
        changed: DomainChanged = parse_params("domain.changed", params)
        domain = DomainInfo(changed.name, changed.domid, changed.state)
        if self._listed:
            self._apply(domain)
        else:
            self._early.append(domain)

    def _apply(self, domain: DomainInfo) -> None:
        self._domains[domain.name] = domain
        logger.debug("%s is %s (domain %s)", domain.name, domain.state, domain.domid)
        if not self._subscribers.tell(domain):
            self._lose(f"a part of this service is {EVENTS_MAX} domain events behind")

    async def start(self, name: str, devices: Sequence[Lease] = ()) -> int:
        answer = await self._call("domain.start", to_wire(DomainStart(name)), START_TIMEOUT)
        try:
            started: DomainStarted = parse_result("domain.start", answer)
        except ProtocolError as error:
            raise DriverError(f"the machine gave no domain number for {name}: {error}") from error
        return started.domid

    async def resume(self, name: str, domid: int) -> None:
        await trio.lowlevel.checkpoint()  # it runs since it was started

    async def shutdown(self, name: str, force: bool) -> None:
        params = to_wire(DomainShutdown(name, force))
        await self._call("domain.shutdown", params, SHUTDOWN_TIMEOUT)

    async def _call(self, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        peer = self._peer
        if peer is None:
            raise DriverError("the machine is not connected", code="unavailable")
        try:
            return await peer.call(method, params, timeout=timeout)
        except CallError as error:
            hint = error.data.get("hint")
            raise DriverError(
                error.message, code=error.code, hint=hint if isinstance(hint, str) else None
            ) from error

    async def connect_control(self, name: str, domid: int) -> trio.abc.Stream:
        if name == DOM0_NAME:
            return await connect_unix(self._dom0_agent)
        channel = await shm.connect(self._vchan, 0, domid, shm.CONTROL_PORT)
        return VchanStream(channel)
