"""The driver for Xen: domains from xenstore's watches, `xl` as the toolstack, vchans to agents.

Nothing is polled. xenstore reports when a domain is introduced or released, and when its name
changes; inotify reports when a configuration appears or disappears. Then the driver takes a
complete new picture, and reports what differs. So it also sees VMs that plain `xl` starts or kills.

`start` leaves the VM paused, before its first instruction: see Driver.resume.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio
from pedos_host.unix import connect_unix
from pedos_vchan import xen as vchan
from pedos_vchan.stream import VchanStream

from pedos_dom0.drivers.base import (
    DOM0_DOMID,
    DOM0_NAME,
    DomainInfo,
    DriverError,
    HypervisorLost,
)
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.drivers.subscribers import Subscribers
from pedos_dom0.drivers.xen.block import XenBlock
from pedos_dom0.drivers.xen.config import Configs, check_config, own_frontends, own_pci
from pedos_dom0.drivers.xen.pci import CREATE_SECONDS_EACH, DESTROY_SECONDS_EACH, XenPci
from pedos_dom0.drivers.xen.reclaim import USERDATA
from pedos_dom0.drivers.xen.xenstore import (
    DOMAINS,
    INTRODUCED,
    RELEASED,
    changes,
    picture,
    seen_domains,
)
from pedos_dom0.drivers.xen.xl import Unfinished, Xl, parse_list
from pedos_dom0.policy.following import follow
from pedos_dom0.tasks.disk import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from pedos_dom0.drivers.carrier import Carrier
    from pedos_dom0.drivers.xen.xenstore import Store
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

# Building a domain takes seconds (its memory is cleared, its disks' scripts run one after the
# other); under emulation fifteen.
CREATE_SECONDS = 90.0
# From `xl shutdown` to the end of the domain: the time that its systemd gives services to stop.
SHUTDOWN_SECONDS = 60.0
DESTROY_SECONDS = 30.0
# After a domain has ended, the xl that waits for that takes at most this long to clear it away.
CLEAR_SECONDS = 10.0
# These only query the hypervisor.
QUICK_SECONDS = 15.0
# Seconds until a failed list of the domains is requested again: meanwhile, ended domains count as
# running, and a shutdown waits for the list. One xl in this time is no burden, however busy dom0
# is.
LIST_RETRY_SECONDS = 5.0
# A VM that boots on a slow disk, or under emulation, has its agent up in this time: 140 s were seen
# while the host was busy. A user who waits for a VM that never comes up is told so, and can stop
# it.
BOOT_SECONDS = 240.0

#: All but disks and PCI devices, which Xen carries. USB devices go as USB/IP between the kernels of
#: both VMs, on a channel of the agents; microphones between the sound servers of their users.
CARRIERS: Mapping[str, Carrier] = {
    "usb": CarriedByAgents(),
    "mic": CarriedByAgents(),
}


class WatchedStore(Protocol):
    """The part of `pedos_vchan.xen.Store` that the driver needs."""

    def read(self, path: str) -> str | None: ...

    def list(self, path: str) -> list[str]: ...

    def watch(self, path: str) -> None: ...

    def unwatch(self, path: str) -> None: ...

    async def changed(self) -> set[str]: ...

    def close(self) -> None: ...


class XenDriver:
    """Driver for a Xen host; see `Driver` for the interface.

    `config_dirs` contain NAME.cfg for every VM that may be started, `dom0_agent` is the socket of
    dom0's own agent. `xl` is the program, `open_store` makes a connection to xenstore, `userdata`
    is the folder of libxl, `sys_root` and `dev_root` are dom0's /sys and /dev.
    """

    starts_paused = True
    boot_timeout = BOOT_SECONDS

    def __init__(
        self,
        *,
        config_dirs: Sequence[Path],
        dom0_agent: Path,
        xl: str = "xl",
        open_store: Callable[[], WatchedStore] = vchan.Store,
        userdata: Path = USERDATA,
        sys_root: Path = Path("/sys"),
        dev_root: Path = Path("/dev"),
    ) -> None:
        self._configs = Configs(config_dirs)
        self._dom0_agent = dom0_agent
        self._xl = Xl(xl)
        self._open_store: Callable[[], WatchedStore] = open_store
        self._store: WatchedStore | None = None
        self._domains: dict[str, DomainInfo] = {}
        self._seen: set[int] = set()  # the domains of the last picture; their names are watched
        # Those that `start` has made and that have not run: `resume` has not been asked, or xl has
        # said that it failed.
        self._held_back: set[int] = set()
        self._over: frozenset[int] = frozenset()
        self._over_due = trio.Event()  # it may have changed since the hypervisor was asked
        self._asking_over = False
        self._over_unknown = False  # the last list failed
        self._in_transit: set[str] = set()
        self._subscribers = Subscribers()
        self._creating = trio.Lock()  # xl has a lock of its own, and a deadline runs meanwhile
        self._waiting = trio.lowlevel.ParkingLot()  # for another picture of the domains
        self._nursery: trio.Nursery | None = None
        self._block = XenBlock(
            xl=self._xl,
            store=self._connected,
            open_store=self._new_store,
            has_ended=self._has_ended,
            is_held_back=lambda domid: domid in self._held_back,
            own_names=self._own_frontends,
            userdata=userdata,
        )
        self._pci = XenPci(
            xl=self._xl,
            store=self._connected,
            open_store=self._new_store,
            has_ended=self._has_ended,
            sys_root=sys_root,
            dev_root=dev_root,
        )
        self.carriers: Mapping[str, Carrier] = {
            self._block.device_class: self._block,
            self._pci.device_class: self._pci,
            **CARRIERS,
        }

    # Driver

    def domains(self) -> Mapping[str, DomainInfo]:
        return self._domains

    def knows_all(self) -> bool:
        return self._configs.is_complete

    def events(self) -> trio.MemoryReceiveChannel[DomainInfo]:
        return self._subscribers.add()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            self._store = self._open_store()
        except OSError as error:
            raise HypervisorLost(
                f"no xenstore ({error.strerror or error}): is this dom0 of a machine that Xen has "
                "booted, with its toolstack started?"
            ) from error
        lost: OSError | None = None
        scope = trio.CancelScope()
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    try:
                        for path in (INTRODUCED, RELEASED):
                            self._store.watch(path)
                        await self._find_over()
                        await in_thread(self._configs.read)
                        self._look()
                        nursery.start_soon(self._follow_configs)
                        nursery.start_soon(self._follow_over)
                        task_status.started()
                        await self._follow_store(self._store)
                    except OSError as error:
                        lost = error
                        scope.cancel()
        finally:
            self._nursery = None
            store, self._store = self._store, None
            store.close()
            self._subscribers.close()
        raise HypervisorLost(f"xenstore has failed: {lost}") from lost

    async def _follow_store(self, store: WatchedStore) -> None:
        while True:
            paths = await store.changed()
            self._look()  # which does not wait for the hypervisor
            # A domain that has ended may come back with the same number (a soft reset).
            if RELEASED in paths or (INTRODUCED in paths and (self._over or self._asking_over)):
                self._over_due.set()

    async def _follow_over(self) -> None:
        while True:
            with trio.move_on_after(LIST_RETRY_SECONDS if self._over_unknown else math.inf):
                await self._over_due.wait()
            self._over_due = trio.Event()
            await self._find_over()
            self._look()

    async def _follow_configs(self) -> None:
        await follow(
            watched=lambda: self._configs.folders,
            read=self._read_configs,
            is_flawed=lambda: not self._configs.is_complete,
            complain=partial(
                logger.error, "the folders of VMs' configurations cannot be watched: %s"
            ),
        )

    async def _read_configs(self) -> None:
        await in_thread(self._configs.read)
        self._look()

    async def _find_over(self) -> None:
        """Asks the hypervisor which domains have ended but are not cleared away: xenstore only
        tells that one of them has. It takes long when dom0 is busy."""
        self._asking_over = True
        try:
            listed = parse_list(
                await self._xl.run("list", seconds=QUICK_SECONDS, what="no list of domains")
            )
        except DriverError as error:
            if not self._over_unknown:
                logger.warning("%s; until there is one, what has ended may count as running", error)
            self._over_unknown = True
        else:
            self._over_unknown = False
            self._over = frozenset(domain.domid for domain in listed if domain.over)
        finally:
            self._asking_over = False

    def _look(self) -> None:
        """Takes a new picture and reports the differences. Has no checkpoint."""
        store = self._connected()
        seen = seen_domains(store)
        self._watch_names(set(seen))
        before = self._domains
        after = picture(seen.values(), self._over, self._configs.uuids, self._in_transit)
        self._domains = after
        for info in changes(before, after):
            logger.debug("%s is %s (domain %s)", info.name, info.state, info.domid)
            self._subscribers.tell(info)
            self._greet(info)
        self._waiting.unpark_all()

    def _greet(self, info: DomainInfo) -> None:
        """A domain may have devices that it was not granted."""
        if info.domid is None or self._nursery is None:
            return
        self._block.reclaimer.domain_came(info.name, info.domid)
        self._nursery.start_soon(self._block.reclaimer.settle, info.domid)

    def _watch_names(self, domids: set[int]) -> None:
        """Of all nodes of a domain, only its name is watched: only dom0 can write it, and it
        disappears with the domain. The domain can write everything else below it, and could flood
        us with events."""
        store = self._connected()
        for gone in self._seen - domids:
            store.unwatch(f"{DOMAINS}/{gone}/name")
            self._block.reclaimer.forget(gone)
        for new in sorted(domids - self._seen):
            store.watch(f"{DOMAINS}/{new}/name")
        self._seen = domids
        self._held_back &= domids

    def _connected(self) -> WatchedStore:
        if self._store is None:
            raise DriverError("xenstore is not connected", code="unavailable")
        return self._store

    def _new_store(self) -> Store:
        return self._open_store()

    async def start(self, name: str, devices: Sequence[Lease] = ()) -> int:
        domain = self._domains.get(name)
        if domain is not None and domain.domid is not None:
            return domain.domid
        path = self._configs.paths.get(name)
        if path is None:
            where = " and ".join(str(folder / f"{name}.cfg") for folder in self._configs.folders)
            raise DriverError(f"there is no {where}", hint="write one, see xl.cfg(5)")
        uuid = await in_thread(partial(check_config, name, path))
        if uuid != self._configs.uuids.get(name):
            # Its devices were decided about for the other VM.
            raise DriverError(
                f"{path} gives another uuid than when the folder was last read",
                hint=f"qvm-start {name} in a moment, when it was read again",
            )
        await self._check_own_pci(name, path, devices)
        async with self._creating, self._transit(name):
            before = self._living(name)
            try:
                with self._pci.moving(devices):
                    await self._xl.run(
                        *("create", "-p", str(path), *self._pci.creation_words(devices)),
                        seconds=CREATE_SECONDS + CREATE_SECONDS_EACH * len(devices),
                        what="xl did not make it",
                    )
            except DriverError as error:
                # A failed create has taken back what it had made. One that the service's end
                # interrupts is left to the next service, which finds the start in its store.
                refused = not isinstance(error, Unfinished)
                code = "failed" if refused or await self._take_back(name, before) else "timeout"
                raise DriverError(str(error), code=code, hint=error.hint) from error
            domid = self._living(name) - before
            if not domid:
                raise DriverError(f"xl made no VM named {name} of {path}")
            self._look()
            self._held_back |= domid
            self._block.reclaimer.complete(max(domid))
        return max(domid)

    async def _check_own_pci(self, name: str, path: Path, devices: Sequence[Lease]) -> None:
        """DriverError if the VM's configuration gives it one of the devices as well: xl fails."""
        own = await in_thread(partial(own_pci, path)) if devices else frozenset()
        if twice := sorted(own.intersection(self._pci.addresses(devices))):
            raise DriverError(
                f"{path} gives {name} {', '.join(twice)} itself, and it is assigned too",
                hint=f"remove it from pci= there, or unassign it: qvm-pci detach {name}",
            )

    def _destroy_seconds(self, domid: int) -> float:
        return DESTROY_SECONDS + DESTROY_SECONDS_EACH * self._pci.count(domid)

    def _living(self, name: str) -> set[int]:
        """The domains of this name that xenstore has now, whether they were reported or not."""
        seen = seen_domains(self._connected()).values()
        return {domain.domid for domain in seen if domain.name == name} - self._over

    async def _take_back(self, name: str, before: set[int]) -> bool:
        """Destroys what a create has left; False if it is not known that nothing is left now."""
        try:
            left = self._living(name) - before
            self._held_back |= left
            with trio.CancelScope(shield=True):
                await self._destroy_all(left)
            return not self._living(name) - before
        except (DriverError, OSError) as error:  # without xenstore this service is at its end
            logger.warning("what is left of %s is the next service's to stop: %s", name, error)
            return False

    async def _destroy_all(self, domids: set[int]) -> None:
        for domid in domids:
            try:
                await self._xl.run(
                    *("destroy", str(domid)),
                    seconds=self._destroy_seconds(domid),
                    what=f"domain {domid} could not be destroyed",
                )
            except DriverError as error:
                logger.error("%s", error)

    def _transit(self, name: str) -> _Transit:
        return _Transit(self, name)

    async def resume(self, name: str, domid: int) -> None:
        # From here on it may run and use what it has, unless xl says that it failed.
        self._pci.runs(domid)
        was_held_back = domid in self._held_back
        self._held_back.discard(domid)
        words, what = ("unpause", str(domid)), f"{name} could not be unpaused"
        try:
            await self._xl.run(*words, seconds=QUICK_SECONDS, what=what)
        except DriverError as error:
            if was_held_back and not isinstance(error, Unfinished):
                self._held_back.add(domid)
            raise

    async def shutdown(self, name: str, force: bool) -> None:
        domids = self._living(name)
        if not domids:
            if name not in self._domains:
                raise DriverError(f"no VM named '{name}'", code="not_found")
            return
        domid = max(domids)
        what = f"{name} could not be shut down"
        seconds = self._destroy_seconds(domid)
        # xl takes away what the domain has before it ends it.
        clear = CLEAR_SECONDS + DESTROY_SECONDS_EACH * self._pci.count(domid)
        if force or domid in self._held_back:
            # A VM that was made and never unpaused would not notice a shutdown request.
            await self._xl.run("destroy", str(domid), seconds=seconds, what=what)
        else:
            await self._xl.run("shutdown", str(domid), seconds=QUICK_SECONDS, what=what)
            if not await self._until(lambda: self._has_ended(domid), SHUTDOWN_SECONDS):
                raise DriverError(
                    f"{name} still runs {SHUTDOWN_SECONDS:g} s after it was told to shut down",
                    hint=f"qvm-shutdown --force {name}",
                )
        # The xl that waits for a VM's end clears it away. It may have been killed.
        if not await self._until(lambda: domid not in self._seen, clear):
            await self._xl.run("destroy", str(domid), seconds=seconds, what=what)
            await self._until(lambda: domid not in self._seen, clear)
        if not self._has_ended(domid):
            raise DriverError(f"{what}: xl destroyed it, and it is still there")

    def _has_ended(self, domid: int) -> bool:
        return domid not in self._seen or domid in self._over

    async def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Waits for such a picture of the domains; False if it does not come in time."""
        self._look()
        with trio.move_on_after(seconds):
            while not done():
                await self._waiting.park()
        return done()

    async def connect_control(self, name: str, domid: int) -> trio.abc.Stream:
        if domid == DOM0_DOMID or name == DOM0_NAME:
            return await connect_unix(self._dom0_agent)
        # Waits for the agent by a watch; the caller bounds the wait.
        channel = await vchan.connect_when_there(DOM0_DOMID, domid, vchan.CONTROL_PORT)
        self._block.reclaimer.complete(domid)  # it has run
        return VchanStream(channel)

    async def _own_frontends(self, name: str) -> Collection[str]:
        path = self._configs.paths.get(name)
        if path is not None:
            return await in_thread(partial(own_frontends, path))
        if not self._configs.is_complete:
            raise DriverError("not all folders of configurations can be read")
        return frozenset()


class _Transit:
    """While it lasts, a VM without a domain is starting and not halted."""

    def __init__(self, driver: XenDriver, name: str) -> None:
        self._driver = driver
        self._name = name

    async def __aenter__(self) -> None:
        self._driver._in_transit.add(self._name)
        self._driver._look()

    async def __aexit__(self, *_: object) -> None:
        self._driver._in_transit.discard(self._name)
        if self._driver._store is not None:
            self._driver._look()
