"""A hypervisor, agents and clients for tests of dom0's service, with the real protocol in between.

What a VM has (devices, exports, imports) is in its FakeAgent and survives a restart of the service,
as in a real system. `agent.on[METHOD] = handler` injects faults.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import outcome
import trio
import trio.testing
from outcome import Outcome
from pedos_dom0.audit.log import Audit
from pedos_dom0.audit.queue import AuditQueue
from pedos_dom0.connections.local_socket import LocalSocket
from pedos_dom0.drivers.base import DomainInfo, DriverError
from pedos_dom0.drivers.carrier import CarriedByAgents, Carrier
from pedos_dom0.drivers.local import BOOT_TIMEOUT, CARRIERS
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.service import start_parts
from pedos_dom0.state import State
from pedos_dom0.tables.leases import Lease, LeaseTable
from pedos_dom0.tables.registry import Registry
from pedos_dom0.tables.store import Store
from pedos_dom0.tables.store_file import StoreFile
from pedos_dom0.vms.facts import Facts
from pedos_protocol.device_classes import class_named
from pedos_protocol.errors import CallError
from pedos_protocol.fields import PAGE_DEVICES_MAX
from pedos_protocol.messages import SCHEMA, PolicyStatus, to_wire
from pedos_vchan.peer import Peer

from tests.fake_class import FAKE
from tests.protocol.version_1 import SaysVersion1
from tests.trio_versions import background

Params = dict[str, Any]
T = TypeVar("T")

# Those of local mode, and that of the class which is registered in tests alone.
WITH_FAKE: Mapping[str, Carrier] = {**CARRIERS, FAKE.name: CarriedByAgents()}
ALLOW_DOM0 = "device.*.*  *  @adminvm  @anyvm  allow\n"


class FakeDriver:
    """Domains that exist because a test says so, each with a FakeAgent (or none)."""

    carriers = WITH_FAKE
    starts_paused = False
    boot_timeout = BOOT_TIMEOUT

    def __init__(self) -> None:
        self.infos: dict[str, DomainInfo] = {}
        self.agents: dict[str, FakeAgent] = {}
        self.subscribers: list[trio.MemorySendChannel[DomainInfo]] = []
        self.shutdowns: list[tuple[str, bool]] = []
        self.refuse_start: DriverError | None = None
        # Should start time out: does the VM come up all the same?
        self.starts_late = False
        self.refuse_shutdown: DriverError | None = None
        self.last_domid = 0
        self.complete = True

    def add(self, name: str, *, running: bool = True) -> FakeAgent:
        agent = self.agents[name] = FakeAgent(name)
        domid = self._next_domid() if running else None
        self.infos[name] = DomainInfo(name, domid, "Running" if running else "Halted")
        return agent

    def _next_domid(self) -> int:
        self.last_domid += 1
        return self.last_domid

    def domains(self) -> dict[str, DomainInfo]:
        return self.infos

    def knows_all(self) -> bool:
        return self.complete

    def events(self) -> trio.MemoryReceiveChannel[DomainInfo]:
        send, receive = trio.open_memory_channel[DomainInfo](100)
        self.subscribers.append(send)
        return receive

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    def change(self, name: str, domid: int | None, state: Any) -> None:
        before = self.infos.get(name)
        self.infos[name] = DomainInfo(name, domid, state, before and before.uuid)
        self.tell(self.infos[name])

    def tell(self, info: DomainInfo) -> None:
        for subscriber in self.subscribers:
            with contextlib.suppress(trio.BrokenResourceError):
                subscriber.send_nowait(info)

    async def start(self, name: str, devices: Sequence[Lease] = ()) -> int:
        await trio.lowlevel.checkpoint()
        if self.refuse_start is not None:
            if self.starts_late:
                self.change(name, self._next_domid(), "Running")
            raise self.refuse_start
        domid = self._next_domid()
        self.change(name, domid, "Running")
        return domid

    async def resume(self, name: str, domid: int) -> None:
        await trio.lowlevel.checkpoint()

    async def shutdown(self, name: str, force: bool) -> None:
        await trio.lowlevel.checkpoint()
        self.shutdowns.append((name, force))
        if self.refuse_shutdown is not None:
            raise self.refuse_shutdown
        self.die(name)

    def die(self, name: str) -> None:
        """The domain ends, and with it its agent and whatever that had."""
        self.agents[name].kill()
        self.change(name, None, "Halted")

    async def connect_control(self, name: str, domid: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        agent = self.agents.get(name)
        if agent is None or not agent.listens:
            raise ConnectionRefusedError("nobody listens")
        if agent.handshake is not None:
            raise agent.handshake
        return agent.accept()


class FakeAgent:
    """One VM's agent: it does what it is told, and reports what it has."""

    nursery: trio.Nursery

    def __init__(self, name: str) -> None:
        self.name = name
        self.listens = True
        self.greets = True
        # What making the channel to it ends in.
        self.handshake: Exception | None = None
        self.devices: dict[str, Params] = {}
        self.exports: dict[str, Params] = {}
        self.imports: dict[str, Params] = {}
        self.calls: list[str] = []
        self.on: dict[str, Callable[[Params], Awaitable[Params | None]]] = {}
        self.peer: Peer | None = None
        self.revision = 0
        # What it has and does not report, as in its reports.
        self.missing: list[Params] = []
        # The devices that dom0 asks it to report before others.
        self.preferred: list[str] = []
        self.connections = 0
        self._stopped: set[str] = set()  # imports, some of which may be about to start
        # Replaces the protocol: is given the raw stream.
        self.misbehave: Callable[[trio.abc.Stream], Awaitable[None]] | None = None
        # Is it one of version 1 of the protocol?
        self.says_version_1 = False
        # Further requests that it serves.
        self.more: dict[str, Callable[[Peer, Params], Awaitable[Params]]] = {}

    def accept(self) -> trio.abc.Stream:
        ours: trio.abc.Stream
        ours, theirs = trio.testing.memory_stream_pair()
        if self.says_version_1:
            ours = SaysVersion1(ours)
        self.connections += 1
        self.nursery.start_soon(self._serve, ours)
        return theirs

    async def _serve(self, stream: trio.abc.Stream) -> None:
        if self.misbehave is not None:
            await self.misbehave(stream)
            return
        peer = Peer(
            stream,
            program="fake-agent",
            handlers={
                "export.start": self._export_start,
                "export.stop": self._export_stop,
                "export.mute": self._export_mute,
                "import.start": self._import_start,
                "import.stop": self._import_stop,
                "import.check": self._import_check,
                "report.prefer": self._report_prefer,
                **self.more,  # type: ignore[dict-item]
            },
            name=self.name,
        )
        self.peer = peer
        with contextlib.suppress(trio.BrokenResourceError):
            async with trio.open_nursery() as nursery:

                async def run(*, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                    await serve_until_broken(peer, task_status)
                    nursery.cancel_scope.cancel()

                await nursery.start(run)
                if self.greets and self.peer is peer:  # the connection may have ended already
                    with contextlib.suppress(CallError):  # the service may end meanwhile
                        await self.report()

    # What dom0 asks

    async def _do(self, method: str, params: Params) -> Params | None:
        self.calls.append(method)
        if method in self.on:
            return await self.on[method](params)
        return None

    async def _export_start(self, _peer: Peer, params: Params) -> Params:
        answer = await self._do("export.start", params)
        keys = ("attachment", "device_class", "device", "peer", "port", "read_only", "instance",
                "muted")  # fmt: skip
        self.exports[params["attachment"]] = {key: params[key] for key in keys if key in params}
        return answer or {}

    async def _export_mute(self, _peer: Peer, params: Params) -> Params:
        await self._do("export.mute", params)
        if params["attachment"] not in self.exports:
            raise CallError("not_found", "there is no such export")
        self.exports[params["attachment"]]["muted"] = params["muted"]
        return {}

    async def _export_stop(self, _peer: Peer, params: Params) -> Params:
        await self._do("export.stop", params)
        self.exports.pop(params["attachment"], None)
        return {}

    async def _import_start(self, _peer: Peer, params: Params) -> Params:
        self._stopped.discard(params["attachment"])
        answer = await self._do("import.start", params)
        if params["attachment"] in self._stopped:
            raise CallError("failed", "it was stopped meanwhile")
        described = class_named(params["device_class"])
        names = described.names if described else ()
        chosen = names[len(self.imports)] if names else None
        answer = answer or {"frontend": params["frontend"] or chosen}
        reported = {k: value for k, value in params.items() if k not in ("handover", "description")}
        self.imports[params["attachment"]] = {**reported, **answer}
        return answer

    async def _import_stop(self, _peer: Peer, params: Params) -> Params:
        self._stopped.add(params["attachment"])
        await self._do("import.stop", params)
        self.imports.pop(params["attachment"], None)
        return {}

    async def _import_check(self, _peer: Peer, params: Params) -> Params:
        await self._do("import.check", params)
        return {}

    async def _report_prefer(self, _peer: Peer, params: Params) -> Params:
        await self._do("report.prefer", params)
        self.preferred = [each["device"] for each in params["devices"]]
        return {"revision": self.revision}

    # What it tells

    def invent_exports(self, count: int) -> None:
        """Has it report exports that it was never asked for."""
        for number in range(count):
            attachment = f"{number:016x}"
            self.exports[attachment] = {
                "attachment": attachment,
                "device_class": "block",
                "device": "x",
                "peer": 1,
                "port": 99,
                "read_only": False,
            }

    async def report(self) -> None:
        assert self.peer is not None
        self.revision += 1
        devices = list(self.devices.values())
        size = PAGE_DEVICES_MAX
        pages = [devices[at : at + size] for at in range(0, len(devices), size)] or [[]]
        for number, page in enumerate(pages):
            last = number == len(pages) - 1
            params = {
                "revision": self.revision,
                "devices": page,
                "exports": [] if number else list(self.exports.values()),
                "imports": [] if number else list(self.imports.values()),
                "page": number,
                "last": last,
                "missing": self.missing if last else [],
            }
            await self.peer.call("agent.report", params, timeout=5)

    async def says_listening(self, vm_domid: int | None, listening: bool) -> None:
        """Somebody in that domain listens, or nobody does any more."""
        assert self.peer is not None
        for attachment, export in self.exports.items():
            if export["peer"] == vm_domid:
                export["listening"] = listening
                params = {"attachment": attachment, "listening": listening}
                await self.peer.notify("attachment.listening", params)

    async def ended(self, attachment: str, side: str) -> None:
        assert self.peer is not None
        (self.exports if side == "export" else self.imports).pop(attachment, None)
        await self.peer.notify(
            "attachment.ended", {"attachment": attachment, "side": side, "reason": "nbdkit died"}
        )

    async def unplug(self, device: str) -> None:
        del self.devices[device]
        await self.report()

    def plug(self, device: str, device_class: str = "block", **fields: Any) -> None:
        self.devices[device] = {
            "device_class": device_class,
            "device": device,
            "identity": "046d:c52b",
            "description": "a stick",
            "size": 4096,
            "parent": None,
            "read_only": False,
            "busy": None,
            **fields,
        }

    def kill(self) -> None:
        """The agent dies with all that it has; its devices stay plugged in."""
        self.exports.clear()
        self.imports.clear()
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    async def ask(self, method: str, *, timeout_s: float = 120, **params: Any) -> Params:
        """A user of the VM asks dom0, through the agent."""
        assert self.peer is not None
        return await self.peer.call(method, filled_in(method, params), timeout=timeout_s)


class FakePolicy:
    """Rules from a text, without files. With `ok` False those have an error by now."""

    ok = True

    def __init__(self, text: str) -> None:
        self._followers: list[Callable[[], None]] = []
        self.set(text)

    def follow(self, follower: Callable[[], None]) -> None:
        self._followers.append(follower)

    def set(self, text: str) -> None:
        rules, errors = parse_file("30-test.policy", text)
        assert not errors, errors
        self.snapshot = Snapshot(rules)
        for follower in self._followers:
            follower()

    def status(self) -> PolicyStatus:
        rules = len(self.snapshot)
        since = "2024-01-01T00:00:00"
        return PolicyStatus(ok=self.ok, loaded_at=since, rules=rules, errors=())


class Unsynced:
    """A connection to SQLite that leaves to the kernel when the disk gets what is written."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.execute("PRAGMA synchronous = OFF")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._db.execute(sql.replace("synchronous = FULL", "synchronous = OFF"), *values)


class UnsyncedFile(StoreFile):
    """As the service has it, but for a loss of power: a world's service ends within this process,
    and to wait for the disk is a third of what a world takes. test_store.py has the real one."""

    def _open(self) -> None:
        self._db = Unsynced(self._db)  # type: ignore[assignment]
        super()._open()


@functools.cache
def new_store() -> bytes:
    """The file that the service makes where there is none: to make its tables anew takes each
    world longer than anything else of its start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dom0.sqlite"
        UnsyncedFile(path).close()
        return path.read_bytes()


class World:
    """A machine with VMs and a service that can be started, killed and started again."""

    def __init__(self, folder: Path, nursery: trio.Nursery, policy: str = ALLOW_DOM0) -> None:
        self.folder = folder
        self.nursery = nursery
        self.driver = FakeDriver()
        self.policy = FakePolicy(policy)
        self.reach: Callable[[str], Awaitable[None]] = _pass
        # How the store's file is written; a test can put a slow disk here.
        self.disk: Callable[[Callable[[], Any]], Awaitable[Any]] = at_once
        # The folder of VMs' facts; None is a service that was given none.
        self.facts_folder: Path | None = None
        self.state: State
        self.client: Client
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()

    def vm(self, name: str, *devices: str, running: bool = True) -> FakeAgent:
        agent = self.driver.add(name, running=running)
        agent.nursery = self.nursery
        for device in devices:
            agent.plug(device)
        return agent

    def dom0_agent(self, *devices: str) -> FakeAgent:
        agent = self.driver.agents["dom0"] = FakeAgent("dom0")
        agent.nursery = self.nursery
        for device in devices:
            agent.plug(device)
        return agent

    async def start(self) -> None:
        """Starts the service and waits until it has nothing to do."""
        self._ended = trio.Event()
        await self.nursery.start(self._run)
        self.client = Client(self)
        await trio.testing.wait_all_tasks_blocked()

    async def kill(self) -> None:
        """The service stops dead."""
        assert self._scope is not None
        self._scope.cancel()
        await self._ended.wait()
        await trio.testing.wait_all_tasks_blocked()

    async def restart(self) -> None:
        await self.kill()
        self.reach = _pass
        await self.start()

    def _store(self) -> Store:
        path = self.folder / "dom0.sqlite"
        if not path.exists():
            path.touch(0o600)
            path.write_bytes(new_store())
        return Store(UnsyncedFile(path), lambda work: self.disk(work))

    async def _run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self.driver.subscribers.clear()
        with (
            contextlib.closing(self._store()) as store,
            contextlib.closing(
                AuditQueue(Audit(self.folder / "audit.jsonl"), starts_at_once)
            ) as audit,
        ):
            facts = Facts(self.driver, self.facts_folder)
            facts.reload()
            self.state = State(
                driver=self.driver,
                registry=Registry(),
                leases=LeaseTable(),
                store=store,
                audit=audit,
                policy=self.policy,
                facts=facts,
                reach=lambda step: self.reach(step),
            )
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                self.service_nursery = nursery
                self.api = await start_parts(self.state, nursery)
                task_status.started()
        self._ended.set()

    def kill_at(self, step: str) -> trio.Event:
        """The next time the service reaches `step`, it is killed; the event says that it was."""
        killed = trio.Event()

        async def reach(name: str) -> None:
            if name == step and not killed.is_set():
                killed.set()
                assert self._scope is not None
                self._scope.cancel()
                await trio.sleep_forever()

        self.reach = reach
        return killed

    def audit(self, event: str) -> list[Params]:
        lines = (self.folder / "audit.jsonl").read_text().splitlines()
        return [record for line in lines if (record := json.loads(line))["event"] == event]

    def assert_nothing_left(self) -> None:
        """No lease, no journal row, no export and no import anywhere."""
        assert list(self.state.leases) == []
        assert self.state.store.journal() == []
        for agent in self.driver.agents.values():
            assert (agent.exports, agent.imports) == ({}, {}), agent.name


async def serve_until_broken(peer: Peer, task_status: Any) -> None:
    """Serves a connection that may break at any time, also before it is open."""
    with contextlib.suppress(trio.BrokenResourceError):
        await peer.run(task_status=task_status)
    if peer.their_hello is None:
        task_status.started()  # `run` has not said it


class Client:
    """dom0's command line, on a connection of its own for every call."""

    def __init__(self, world: World) -> None:
        self._world = world
        # Both ends of a connection; one that holds nothing is trio.testing.lockstep_stream_pair.
        self.streams: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = (
            trio.testing.memory_stream_pair
        )

    @contextlib.asynccontextmanager
    async def connected(self, **handlers: Any) -> AsyncIterator[Peer]:
        ours, theirs = self.streams()
        self._world.service_nursery.start_soon(LocalSocket(self._world.api).serve_client, theirs)
        async with background() as nursery:
            peer = Peer(
                ours,
                program="fake-client",
                handlers={key.replace("_", "."): value for key, value in handlers.items()},
            )

            async def run(*, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                await serve_until_broken(peer, task_status)

            await nursery.start(run)
            try:
                yield peer
            finally:
                peer.close()

    @contextlib.asynccontextmanager
    async def prompter(
        self, answer: Any = None, *, calls: bool = False
    ) -> AsyncIterator[FakePrompter]:
        """A prompter that registered, for `calls` too; its connection ends with the block."""
        fake = FakePrompter(answer, calls=calls)
        handlers = {"prompt_ask": fake.ask, "prompt_cancel": fake.cancel, "prompt_call": fake.ask}
        async with self.connected(**handlers) as peer:
            fake.peer = peer
            await fake.register()
            yield fake

    async def call(self, method: str, *, timeout_s: float = 120, **params: Any) -> Params:
        async with self.connected() as peer:
            return await peer.call(method, filled_in(method, params), timeout=timeout_s)

    async def list(self, device_class: str = "block", **params: Any) -> list[Params]:
        answer = await self.call("device.list", device_class=device_class, **params)
        return answer["devices"]

    async def attach(self, vm: str, device: str, **more: Any) -> Params:
        return await self.call("device.attach", **named(vm, device), **more)

    async def detach(self, vm: str, device: str) -> Params:
        return await self.call("device.detach", **named(vm, device))


class FakePrompter:
    """Dom0's user in front of a prompter: answers what `answer` says, or not at all if None."""

    peer: Peer

    def __init__(self, answer: Any, *, calls: bool = False) -> None:
        self.answer = answer
        self._registration = {"calls": True} if calls else {}
        self.asked: list[Params] = []
        self.cancelled: list[Params] = []
        # Set by each question; a test that waits for one more makes a new one.
        self.was_asked = trio.Event()

    async def register(self) -> None:
        await self.peer.call("prompter.register", self._registration, timeout=5)

    async def ask(self, _peer: Peer, params: Params) -> Params:
        self.asked.append(params)
        self.was_asked.set()
        if self.answer is None:
            await trio.sleep_forever()
        if callable(self.answer):
            return await self.answer(params)  # type: ignore[no-any-return]
        return self.answer  # type: ignore[no-any-return]

    async def cancel(self, _peer: Peer, params: Params) -> None:
        self.cancelled.append(params)


def yes(vm: str) -> Params:
    """What a prompter says when dom0's user chose a VM."""
    return {"verdict": "allow", "target": vm}


NO: Params = {"verdict": "deny", "target": None}


def named(vm: str, device: str, device_class: str = "block") -> Params:
    """The parameters that name a device `BACKEND:ID` and a VM."""
    backend, _, name = device.partition(":")
    return {"device_class": device_class, "vm": vm, "backend": backend, "device": name}


def filled_in(method: str, params: Params) -> Params:
    """The parameters with their defaults, as a client writes them."""
    return to_wire(SCHEMA[method].params(**params))


async def at_once(work: Callable[[], T]) -> T:
    """Replaces a thread, for which `wait_all_tasks_blocked` would not wait."""
    await trio.lowlevel.checkpoint()
    return work()


def starts_at_once(work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
    """The same, for who does not wait for it."""

    async def run() -> None:
        then(outcome.capture(work))

    trio.lowlevel.spawn_system_task(run)


async def hang(_params: Params) -> None:
    """Misbehaviour of a VM."""
    await trio.sleep_forever()


async def _pass(_step: str) -> None:
    await trio.lowlevel.checkpoint()


@contextlib.contextmanager
def fails(code: str, *words: str) -> Iterator[None]:
    """The block raises a CallError of that code, with these words in its sentence or hint."""
    try:
        yield
    except CallError as error:
        assert error.code == code, error
        said = f"{error.message} | {error.data.get('hint')}"
        for word in words:
            assert word in said, said
    else:
        raise AssertionError(f"it worked, and should have been {code}")
