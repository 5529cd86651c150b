"""Services behind an agent: dom0's word, a keeper, and the call's channel."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_agent.calls import keepers, served_call
from pedos_agent.calls.channels import Channels
from pedos_agent.calls.keepers import Keepers
from pedos_agent.calls.serving import Serving
from pedos_agent.settings import Settings
from pedos_host.plain_unix import bind_unix
from pedos_protocol.call_messages import ServiceEnded, ServiceStart
from pedos_protocol.errors import CallError
from pedos_protocol.fields import parse_message
from pedos_protocol.keeper_link import Ended, Signal, Spawned, build
from pedos_protocol.schema import to_wire
from pedos_vchan.call_pump import CallEnd, CallPump, Event, EventKind
from pedos_vchan.channel import Channel
from pedos_vchan.later import Later
from pedos_vchan.transport import SharedMemory

from tests.patience import PATIENCE

from .keeper_client import CALL, Place, is_there, keeper_below, stopped, wait_for_end

ORDERS = (16, 16)
CALLER, SERVICE, PORT = 2, 3, 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("serving"))
    with place.running():
        yield place


@pytest.fixture
def keeper(place: Place) -> int:
    """The process of the keeper, which serves by now."""
    place.service("test.First", "exit 0")
    with place.run("test.First") as call:
        call.output()
    return keeper_below(place.guard)


class Vm:
    """A VM with services, whose channels and notices a test has at the other end."""

    def __init__(self, folder: Path, keeper: Path | None, control: Path | None = None) -> None:
        self.caller = SharedMemory(folder, CALLER)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []  # to dom0, in order
        self.channels = Channels(SharedMemory(folder, SERVICE), self._tell)
        nowhere = Path("/nonexistent")
        settings = Settings(
            "work", SERVICE, folder, nowhere, nowhere, nowhere, control, keeper=keeper
        )
        self.serving = Serving(settings, self.channels, self._tell)
        self._news = trio.Event()
        self._number = 0

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        self.told.append((method, params))
        self.said.append(method)
        self._news.set()

    async def start(self, service: str, **fields: Any) -> dict[str, Any]:
        """dom0 has the service started for a call whose other end listens at `PORT`."""
        wanted = ServiceStart(
            **{
                "call": CALL,
                "service": service,
                "argument": "+",
                "source": "vault",
                "requested_target": "",
                "user": None,
                "peer": CALLER,
                "port": PORT,
                "new": True,
                "stderr": True,
                **fields,
            }
        )
        handler = self.serving.handlers()["service.start"]
        later = await handler(None, to_wire(wanted))  # type: ignore[arg-type]
        assert isinstance(later, Later)
        answers: list[dict[str, Any]] = []
        answered = trio.Event()

        def settle(_later: Later, answer: Any, _more: bool) -> None:
            self.said.append("answer")
            answers.append(answer)
            answered.set()

        later.owe(settle, lambda _: AssertionError("it is given up"), math.inf)
        await answered.wait()
        return answers[0]

    async def ended(self, number: int = 1) -> ServiceEnded:
        """What dom0 is told at the end of the call of that number."""
        while True:
            found = [params for method, params in self.told if method == "service.ended"]
            if len(found) >= number:
                message = parse_message(ServiceEnded, found[number - 1])
                assert isinstance(message, ServiceEnded)
                return message
            self._news = trio.Event()
            await self._news.wait()


class Caller:
    """The calling side of one call: descriptors of the program, and the pump's end."""

    def __init__(self, pump: CallPump, events: list[Event]) -> None:
        self.pump = pump
        self.end: CallEnd | None = None
        self.events = events
        self.stdin, self._stdin = socket.socketpair()
        self.stdout, self._stdout = socket.socketpair()
        self.stderr, self._stderr = socket.socketpair()
        self.streams = [
            trio.SocketStream(trio.socket.from_stdlib_socket(each))
            for each in (self.stdin, self.stdout, self.stderr)
        ]

    async def run(self) -> None:
        ours = [each.detach() for each in (self._stdin, self._stdout, self._stderr)]
        self.end = await self.pump.run(*ours)

    async def output(self, given: bytes = b"") -> tuple[bytes, bytes]:
        """All of stdout and stderr, after stdin was this and has ended."""
        with contextlib.suppress(trio.BrokenResourceError):  # it may have ended already
            await self.streams[0].send_all(given)
            await self.streams[0].send_eof()
        return await read_all(self.streams[1]), await read_all(self.streams[2])

    def close(self) -> None:
        for each in self.streams:
            each.socket.close()


@contextlib.contextmanager
def keeper_at(path: Path) -> Iterator[trio.socket.SocketType]:
    """Where a test listens as a keeper."""
    with bind_unix(path, 0o600, kind=socket.SOCK_SEQPACKET) as listener:
        yield trio.socket.from_stdlib_socket(listener)


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([each async for each in stream])


@asynccontextmanager
async def vm_with(
    folder: Path, keeper: Path | None, control: Path | None = None
) -> AsyncIterator[Vm]:
    vm = Vm(folder, keeper, control)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(vm.channels.run)
            await nursery.start(vm.serving.run)
            yield vm
            nursery.cancel_scope.cancel()


@pytest.fixture
async def vm(tmp_path: Path, place: Place) -> AsyncIterator[Vm]:
    async with vm_with(tmp_path, place.path) as made:
        yield made


@asynccontextmanager
async def calling(
    vm: Vm, service: str, **fields: Any
) -> AsyncIterator[tuple[Caller, dict[str, Any]]]:
    """A call that is under way, and what dom0 was answered; the call is over at the end."""
    with await vm.caller.listen(SERVICE, PORT, ORDERS) as listener:
        answers: list[dict[str, Any]] = []

        async def start() -> None:
            answers.append(await vm.start(service, **fields))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            channel = await listener.accept()
            events: list[Event] = []
            pump = CallPump(
                channel, "caller", bytes.fromhex(fields.get("call", CALL)), events.append
            )
            caller = Caller(pump, events)
            nursery.start_soon(caller.run)
            while not answers:
                await trio.lowlevel.checkpoint()
            yield caller, answers[0]
        caller.close()
        channel.close()


async def test_a_call_has_the_service_s_streams_and_its_status(vm: Vm, place: Place) -> None:
    place.service("test.Filter", 'tr a-z A-Z; echo "for $QREXEC_REMOTE_DOMAIN" >&2; exit 3')
    async with calling(vm, "test.Filter") as (caller, answer):
        assert answer == {"started": True}
        assert await caller.output(b"hello") == (b"HELLO", b"for vault\n")
        told = await vm.ended()
        assert vm.channels.idle() == (PORT,)
    assert caller.end == CallEnd("exited", 3, "", 5, 5, 10, is_reusable=True)
    assert (told.call, told.kind, told.status, told.reusable) == (CALL, "exited", 3, True)
    assert (told.stdin, told.stdout, told.stderr) == (5, 5, 10)
    assert told.started_s is not None and 0 < told.started_s <= told.seconds
    assert vm.serving.running() == []
    assert vm.said == ["answer", "service.ended"]


async def test_a_signal_that_ends_a_service_is_its_end(vm: Vm, place: Place) -> None:
    place.service("test.Dies", "kill -9 $$")
    async with calling(vm, "test.Dies") as (caller, _):
        await caller.output()
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("signalled", 9)


async def test_what_the_caller_has_named_is_for_dom0_s_services_alone(
    tmp_path: Path, place: Place
) -> None:
    place.service(
        "test.Target", "echo $QREXEC_REQUESTED_TARGET_TYPE $QREXEC_REQUESTED_TARGET_KEYWORD"
    )
    for control, told in ((None, b"\n"), (tmp_path / "control", b"keyword adminvm\n")):
        folder = tmp_path / str(control is None)
        folder.mkdir()
        async with (
            vm_with(folder, place.path, control) as vm,
            calling(vm, "test.Target", requested_target="@adminvm") as (caller, _),
        ):
            assert await caller.output() == (told, b"")


async def test_stderr_of_dom0_s_services_stays_there(vm: Vm, place: Place) -> None:
    place.service("test.Says", "echo secret >&2; echo open")
    async with calling(vm, "test.Says", stderr=False) as (caller, _):
        assert await caller.output() == (b"open\n", b"")


async def test_a_grandchild_that_holds_stdout_holds_the_call(vm: Vm, place: Place) -> None:
    place.service("test.Late", "exec 3<&0; { read line <&3; echo late; } & exit 4")
    async with calling(vm, "test.Late") as (caller, _):
        assert await caller.output(b"go\n") == (b"late\n", b"")
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("exited", 4)


@pytest.mark.parametrize(
    ("service", "kind", "status", "text"),
    [
        ("test.Nowhere", "not_found", 127, "there is no service test.Nowhere"),
        ("test.Broken", "problem", 125, "test.Broken:1: 'x' is not KEY = VALUE"),
    ],
)
async def test_what_does_not_start_is_said_in_the_channel_which_stays_good(
    vm: Vm, place: Place, service: str, kind: str, status: int, text: str
) -> None:
    place.service("test.Broken", "exit 0")
    place.configure("test.Broken", "x")
    async with calling(vm, service) as (caller, answer):
        assert answer == {"started": False}
        assert await caller.output() == (b"", b"")
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == (kind, status)
    assert caller.end.text.endswith(text)
    assert caller.end.is_reusable
    told = await vm.ended()
    assert (told.kind, told.started_s, told.reusable) == (kind, None, True)
    assert vm.said == ["answer", "service.ended"]


async def test_a_channel_that_cannot_be_had_is_an_error_and_no_end(vm: Vm) -> None:
    with pytest.raises(CallError, match="there is no channel to domain 2 at port 40"):
        await vm.start("test.Filter", new=False)
    assert vm.serving.running() == []
    assert vm.told == []


async def test_a_service_that_listens_is_one_socket_with_half_close(vm: Vm, place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.services / "test.Socket"))
        listener.listen()
        listener.setblocking(False)
        async with calling(vm, "test.Socket", requested_target="@dispvm") as (caller, answer):
            assert answer == {"started": True}
            accepted, _ = await trio.socket.from_stdlib_socket(listener).accept()
            service = trio.SocketStream(accepted)
            await caller.streams[0].send_all(b"question")
            await caller.streams[0].send_eof()
            assert await read_all(service) == b"test.Socket+ vault\0question"
            await service.send_all(b"answer")
            await service.aclose()
            assert await read_all(caller.streams[1]) == b"answer"
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("exited", 0)


@pytest.mark.parametrize("options", [(), ("forward-signals = true",)])
async def test_a_call_of_a_socket_ends_when_nobody_reads_its_answer(
    vm: Vm, place: Place, options: tuple[str, ...]
) -> None:
    name = f"test.Unread{len(options)}"
    place.configure(name, *options)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.services / name))
        listener.listen()
        listener.setblocking(False)
        async with calling(vm, name) as (caller, _):
            accepted, _ = await trio.socket.from_stdlib_socket(listener).accept()
            service = trio.SocketStream(accepted)
            await caller.streams[0].send_eof()
            await caller.streams[1].aclose()
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await service.send_all(b"answer")
            await service.aclose()
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("exited", 0)


@pytest.mark.parametrize("option", ["exit-on-client-eof", "exit-on-service-eof"])
async def test_a_service_that_exits_by_itself_has_its_status_and_all_its_output(
    vm: Vm, place: Place, option: str
) -> None:
    place.service("test.Fails", "echo answer; echo why >&2; exit 3")
    place.configure("test.Fails", f"{option} = true")
    async with calling(vm, "test.Fails") as (caller, _):
        assert await read_all(caller.streams[1]) == b"answer\n"
        assert await read_all(caller.streams[2]) == b"why\n"
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("exited", 3)


@pytest.mark.parametrize("option", ["exit-on-client-eof", "exit-on-service-eof"])
async def test_a_configuration_says_which_end_ends_the_call(
    vm: Vm, place: Place, option: str
) -> None:
    is_client = option == "exit-on-client-eof"
    place.service("test.Stays", "read line" if not is_client else "sleep 1000 & echo $!; wait")
    if not is_client:
        place.service("test.Stays", "exec >&- 2>&-; read line")
    place.configure("test.Stays", f"{option} = true")
    async with calling(vm, "test.Stays") as (caller, _):
        if is_client:
            pid = int(await caller.streams[1].receive_some(100))
            await caller.streams[0].send_eof()
        await read_all(caller.streams[1])
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("exited", 0)
    if is_client:
        os.kill(pid, signal.SIGKILL)  # it was left alone


async def test_signals_go_to_a_service_that_wants_them_and_to_no_other(
    vm: Vm, place: Place
) -> None:
    place.service(
        "test.Hears",
        "trap 'echo usr1; exit 6' USR1; echo ready; while :; do wait; sleep 0.01; done",
    )
    place.configure("test.Hears", "forward-signals = true")
    async with calling(vm, "test.Hears") as (caller, _):
        assert await caller.streams[1].receive_some(6) == b"ready\n"
        caller.pump.signal(signal.SIGUSR1)
        assert await read_all(caller.streams[1]) == b"usr1\n"
    assert caller.end is not None and caller.end.status == 6


async def test_a_caller_that_goes_leaves_the_service_an_end_of_its_stdin(
    vm: Vm, place: Place
) -> None:
    place.service("test.Reads", "echo $$; while read line; do :; done")
    async with calling(vm, "test.Reads") as (caller, _):
        pid = int(await caller.streams[1].receive_some(100))
        caller.pump.abort()
    await trio.to_thread.run_sync(wait_for_end, pid)
    told = await vm.ended()
    assert told.kind == "aborted"


async def test_what_a_gone_caller_has_left_ends_when_dom0_ends_the_call(
    vm: Vm, place: Place
) -> None:
    """dom0 says so to both VMs, and the caller's may have been the first to obey."""
    place.service("test.Stays", "sleep 1000 & echo $!; wait")
    call = "cd" * 16
    async with calling(vm, "test.Stays", call=call) as (caller, _):
        pid = int(await caller.streams[1].receive_some(100))
        caller.pump.abort()
    assert (await vm.ended()).kind == "aborted"
    os.kill(pid, 0)
    assert await vm.serving.kill(call, "problem", 125, "ended by dom0's user")
    await trio.to_thread.run_sync(wait_for_end, pid)


async def test_a_call_that_dom0_ends_is_over_when_its_keeper_has_ended_all_of_it(
    vm: Vm, place: Place, keeper: int
) -> None:
    place.service("test.Stays", "sleep 1000 & echo $!; wait")
    call = "ef" * 16
    async with calling(vm, "test.Stays", call=call) as (caller, _):
        pid = int(await caller.streams[1].receive_some(100))
        with stopped(keeper):
            assert await vm.serving.kill(call, "problem", 125, "ended by dom0's user")
            while caller.end is None:
                await trio.lowlevel.checkpoint()
            [still] = vm.serving.running()
            assert (still.call, still.stdout) == (call, len(f"{pid}\n")), "it is listed"
            assert not [method for method, _ in vm.told if method == "service.ended"]
        await vm.ended()
        assert not is_there(pid)


async def test_an_end_that_was_not_confirmed_when_the_agent_ended_is_not_told(
    tmp_path: Path, place: Place, keeper: int, nursery: trio.Nursery
) -> None:
    place.service("test.Stays", "sleep 1000 & echo $!; wait")
    vm, call = Vm(tmp_path, place.path), "de" * 16
    scope = trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await vm.serving.run(task_status=task_status)

    await nursery.start(vm.channels.run)
    await nursery.start(serve)
    with trio.fail_after(PATIENCE):
        async with calling(vm, "test.Stays", call=call) as (caller, _):
            await caller.streams[1].receive_some(100)
            with stopped(keeper):
                assert await vm.serving.kill(call, "problem", 125, "ended by dom0's user")
                while caller.end is None:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                while vm.serving.running():
                    await trio.lowlevel.checkpoint()
    assert not [method for method, _ in vm.told if method == "service.ended"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("part", ["serving", "channels"])
async def test_an_agent_that_ends_begins_nothing_in_a_nursery_that_is_closed(
    tmp_path: Path, nursery: trio.Nursery, part: str
) -> None:
    """Its pumps go on for a moment, and would break there."""
    vm, scope, over = Vm(tmp_path, None), trio.CancelScope(), trio.Event()
    ending = getattr(vm, part)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await ending.run(task_status=task_status)
        over.set()

    await nursery.start(run)
    closing = ending._nursery
    scope.cancel()
    while not over.is_set():
        assert ending._nursery is None or not closing._closed
        await trio.lowlevel.checkpoint()


async def test_who_ends_a_call_that_has_lost_its_caller_ends_its_service(
    vm: Vm, place: Place, keeper: int, nursery: trio.Nursery
) -> None:
    """Both were said before the keeper had said its first word."""
    call, mark = "fd" * 16, place.home / "pid"
    place.service("test.Pid", f"echo $$ >{mark}; exec sleep 1000")
    with await vm.caller.listen(SERVICE, PORT, ORDERS) as listener, stopped(keeper):
        nursery.start_soon(partial(vm.start, "test.Pid", call=call))
        with contextlib.closing(await listener.accept()):
            while not vm.serving.running():
                await trio.lowlevel.checkpoint()
            assert await vm.serving.kill(call, "lost", 0, "the agent of vault went away")
            assert await vm.serving.kill(call, "problem", 125, "ended by dom0's user")
        os.kill(keeper, signal.SIGCONT)
        assert (await vm.ended()).kind != "exited"
    assert not mark.exists() or not is_there(int(mark.read_text() or "0"))


@pytest.mark.parametrize("way", ["ended", "given up"])
async def test_a_keeper_that_stood_still_starts_nothing_for_nobody(
    vm: Vm, place: Place, keeper: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = place.home / f"ran {way}"
    place.service("test.Runs", f"echo >'{mark}'")
    with stopped(keeper), monkeypatch.context() as patched:
        patched.setattr(served_call, "FIRST_WORD_SECONDS", 0.01)
        async with calling(vm, "test.Runs", call=f"{len(way):032x}") as (caller, _):
            if way == "ended":
                assert await vm.serving.kill(f"{len(way):032x}", "problem", 125, "ended")
            await caller.output()
        assert caller.end is not None and caller.end.kind == "problem"
    await vm.ended()
    place.service("test.Next", "echo next")
    async with calling(vm, "test.Next") as (caller, _):  # which a later thread has begun
        assert (await caller.output())[0] == b"next\n"
    assert not mark.exists()


async def test_dom0_ends_a_call_with_all_that_the_service_has_started(vm: Vm, place: Place) -> None:
    place.service("test.Family", "sleep 1000 & echo $!; wait")
    async with calling(vm, "test.Family") as (caller, _):
        pid = int(await caller.streams[1].receive_some(100))
        [running] = vm.serving.running()
        assert (running.service, running.side, running.peer) == ("test.Family", "service", CALLER)
        assert await vm.serving.kill(CALL, "problem", 125, "ended by dom0's user")
        await trio.to_thread.run_sync(wait_for_end, pid)
    assert caller.end is not None
    assert (caller.end.kind, caller.end.text) == ("problem", "ended by dom0's user")
    await vm.ended()
    assert not await vm.serving.kill(CALL, "problem", 125, "again")


async def test_a_call_that_dom0_ends_when_its_program_has_exited_is_no_success(
    vm: Vm, place: Place
) -> None:
    """What the program has left still holds its output, and the rest of that is dropped."""
    place.service("test.Leaves", "sleep 1000 & echo $!; exit 0")
    # Its own: the keeper looks for what is left of the call once more when the test is over.
    call = "ab" * 16
    async with calling(vm, "test.Leaves", call=call) as (caller, _):
        pid = int(await caller.streams[1].receive_some(100))
        while Event(EventKind.MAIN_EXITED, 0) not in caller.events:
            await trio.lowlevel.checkpoint()
        assert await vm.serving.kill(call, "problem", 125, "ended by dom0's user")
        await trio.to_thread.run_sync(wait_for_end, pid)
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("problem", 125)
    assert caller.end.text == "ended by dom0's user"


async def test_a_call_that_has_lost_its_caller_ends_with_dom0_s_words(vm: Vm, place: Place) -> None:
    """And not with a word about the keeper, which is hung up on for that."""
    place.service("test.Cat", "echo; exec cat")
    async with calling(vm, "test.Cat") as (caller, _):
        assert await caller.streams[1].receive_some(1) == b"\n"
        assert await vm.serving.kill(CALL, "lost", 0, "the agent of vault went away")
    assert caller.end is not None
    assert (caller.end.kind, caller.end.text) == ("problem", "the agent of vault went away")


async def test_a_call_that_dom0_ends_while_its_service_is_started_leaves_nothing(
    vm: Vm, place: Place, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    runs = place.home / "runs"
    os.mkfifo(runs)
    place.service("test.Early", f"echo $$ >{runs}; exec sleep 1000")
    begin = Keepers.begin
    found: list[int] = []

    def begin_and_end(*given: Any) -> keepers.KeeperCall | None:
        call = begin(*given)
        found.append(int(runs.read_text()))
        nursery.start_soon(vm.serving.kill, CALL, "problem", 125, "ended by dom0's user")
        return call

    monkeypatch.setattr(Keepers, "begin", begin_and_end)
    async with calling(vm, "test.Early") as (caller, _):
        await trio.to_thread.run_sync(wait_for_end, *found)
    assert caller.end is not None
    assert (caller.end.kind, caller.end.text) == ("problem", "ended by dom0's user")


async def test_a_call_that_dom0_ends_before_its_service_is_started_starts_none(
    vm: Vm, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.service("test.Never", f"touch {place.home}/ran")
    connect = vm.channels.connect

    async def connect_and_end(peer: int, port: int) -> Channel:
        channel = await connect(peer, port)
        assert await vm.serving.kill(CALL, "problem", 125, "ended by dom0's user")
        return channel

    monkeypatch.setattr(vm.channels, "connect", connect_and_end)
    async with calling(vm, "test.Never") as (caller, answer):
        await caller.output()
    assert answer == {"started": False}
    assert caller.end is not None
    assert (caller.end.kind, caller.end.text) == ("problem", "ended by dom0's user")
    assert caller.end.is_reusable
    assert not (place.home / "ran").exists()


async def test_a_keeper_that_dies_is_a_problem_for_its_calls(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("test.Waits", "echo ready; read line")
    with place.running() as process:
        async with vm_with(tmp_path, place.path) as vm, calling(vm, "test.Waits") as (caller, _):
            await caller.streams[1].receive_some(6)
            process.send_signal(signal.SIGTERM)
            await read_all(caller.streams[1])
        assert caller.end is not None
        assert caller.end.kind in ("problem", "signalled")
    async with vm_with(tmp_path, place.path) as vm, calling(vm, "test.Waits") as (caller, _):
        await caller.output()
    assert caller.end is not None
    assert (caller.end.kind, caller.end.text) == ("problem", "the keeper of this VM does not run")


async def test_a_flood_of_calls_leaves_nothing(vm: Vm, place: Place) -> None:
    place.service("test.Short", "exit 0")
    async with calling(vm, "test.Short") as (caller, _):
        await caller.output()
    await vm.ended()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(2, 20):
        vm.channels.close(PORT)
        async with calling(vm, "test.Short") as (caller, _):
            await caller.output()
        assert (await vm.ended(number)).kind == "exited"
    while len(os.listdir("/proc/self/fd")) > before:
        await trio.lowlevel.checkpoint()  # what is idle hears that the other end has closed


async def test_a_keeper_that_ends_with_a_call_unread_is_followed_by_the_next(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async def serve() -> None:
        client, _ = await listener.accept()
        await trio.lowlevel.wait_readable(client)
        client.close()
        client, _ = await listener.accept()
        await trio.lowlevel.wait_readable(client)
        _, streams, _, _ = socket.recv_fds(client._sock, 5000, 3)
        await client.send(build(Spawned(False, False, False)))
        for each in streams:
            os.close(each)
        await client.send(build(Ended("exited", 7)))
        await client.recv(5000)
        client.close()

    with keeper_at(tmp_path / "keeper") as listener:
        nursery.start_soon(serve)
        async with (
            vm_with(tmp_path, tmp_path / "keeper") as vm,
            calling(vm, "test.Any", stderr=False) as (caller, answer),
        ):
            assert answer == {"started": True}
            await caller.output()
    assert caller.end is not None
    assert (caller.end.kind, caller.end.status) == ("exited", 7)


async def test_a_keeper_that_says_nothing_is_hung_up_on(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_call, "FIRST_WORD_SECONDS", 0.01)
    rest: list[bytes] = []

    async def serve() -> None:
        client, _ = await listener.accept()
        await client.recv(5000)
        while not rest or rest[-1]:
            rest.append(await client.recv(5000))
        client.close()

    with keeper_at(tmp_path / "keeper") as listener:
        nursery.start_soon(serve)
        async with (
            vm_with(tmp_path, tmp_path / "keeper") as vm,
            calling(vm, "test.Any") as (caller, answer),
        ):
            assert answer == {"started": False}
            await caller.output()
            while rest[-1:] != [b""]:
                await trio.lowlevel.checkpoint()
    assert caller.end is not None and caller.end.is_reusable
    assert caller.end.text == "the keeper of this VM says nothing within 8 s"
    kill = build(Signal(int(signal.SIGKILL)))
    assert rest == [kill, b""], "it is to start nothing for nobody"


async def test_calls_end_with_the_agent(
    tmp_path: Path, place: Place, nursery: trio.Nursery
) -> None:
    place.service("test.Lasts", "echo $$; read line")
    vm = Vm(tmp_path, place.path)
    scope = trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await vm.serving.run(task_status=task_status)

    await nursery.start(vm.channels.run)
    await nursery.start(serve)
    with trio.fail_after(PATIENCE):
        async with calling(vm, "test.Lasts") as (caller, _):
            pid = int(await caller.streams[1].receive_some(100))
            scope.cancel()
            await read_all(caller.streams[1])
            await trio.to_thread.run_sync(wait_for_end, pid)
        while "channel.closed" not in vm.said:
            await trio.lowlevel.checkpoint()
    assert caller.end is not None and caller.end.kind == "lost"
    assert vm.said == ["answer", "channel.closed"]
    assert vm.serving.running() == []


@pytest.mark.parametrize("comes_late", [False, True])
async def test_a_call_is_not_begun_by_an_agent_that_ends(
    tmp_path: Path,
    place: Place,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    comes_late: bool,
) -> None:
    """Its channel was still being made; on Xen that is a thread's work, which is not cancelled."""
    place.service("test.Never", f"touch {place.home}/ran")
    vm = Vm(tmp_path, place.path)
    scope, connecting = trio.CancelScope(), trio.Event()
    connect = vm.channels.connect

    async def connect_late(peer: int, port: int) -> Channel:
        connecting.set()
        if not comes_late:
            await trio.sleep_forever()
        with trio.CancelScope(shield=True):
            await ended.wait()
            return await connect(peer, port)

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await vm.serving.run(task_status=task_status)

    async def start(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as starting:
            task_status.started(starting)
            with contextlib.suppress(CallError):
                await vm.start("test.Never")

    ended = trio.Event()
    monkeypatch.setattr(vm.channels, "connect", connect_late)
    await nursery.start(vm.channels.run)
    await nursery.start(serve)
    with trio.fail_after(PATIENCE), await vm.caller.listen(SERVICE, PORT, ORDERS) as listener:
        async with trio.open_nursery() as starts:
            starting = await starts.start(start)
            await connecting.wait()
            scope.cancel()
            starting.cancel()
            ended.set()
            if comes_late:
                (await listener.accept()).close()
    assert vm.serving.running() == []
    assert not (place.home / "ran").exists()
