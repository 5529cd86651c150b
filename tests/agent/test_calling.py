"""Calls of a VM's programs: what they ask for, how each ends, and what a bad one cannot do.

dom0 is the test; the other VM is a service's side of the pump in this process.
"""

from __future__ import annotations

import array
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_agent.calls import callers, calling, members
from pedos_agent.calls.calls import Calls
from pedos_agent.calls.channels import Channels
from pedos_host.packets import PacketSocket
from pedos_protocol.call_link import (
    AGENT,
    DATAGRAM_MAX,
    Call,
    Ended,
    Message,
    Signal,
    Started,
    build,
    parse,
)
from pedos_protocol.errors import CallError
from pedos_protocol.messages import SCHEMA
from pedos_vchan.call_crew import crew
from pedos_vchan.call_pump import CallPump, Event
from pedos_vchan.transport import SharedMemory

from tests.agent.conftest import make_settings
from tests.patience import PATIENCE

CALL = Call(1, True, "vault", "work.Echo", "+x", "")
ORDERS = (14, 14)


class Service:
    """The service of a call, as its pump has it; the test writes and reads the other ends."""

    def __init__(self, call: str) -> None:
        self.call = call
        self.events: list[str] = []
        self.signals: list[int] = []
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        self.ends = [each.detach() for each in theirs]
        self.stdin, self.stdout, self.stderr = (
            trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in ours
        )

    def hear(self, event: Event) -> None:
        self.events.append(event.kind.name)
        if event.kind.name == "SIGNAL":
            self.signals.append(event.number)

    def close(self) -> None:
        for each in (self.stdin, self.stdout, self.stderr):
            each.socket.close()


Behave = Callable[[Service, CallPump], Awaitable[None]]


async def echo(service: Service, pump: CallPump) -> None:
    """What comes goes back, and a word to the error output."""
    await service.stderr.send_all(b"echo\n")
    async for data in service.stdin:
        await service.stdout.send_all(data)
    service.close()
    pump.exit("exited", 3)


async def until_aborted(service: Service, pump: CallPump) -> None:
    """Reads until the end of its input, whatever that means."""
    async for _ in service.stdin:
        pass
    service.close()
    pump.exit("exited", 0)


class World:
    """A VM's calls, dom0, and the other VM."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        settings = make_settings(folder, "work", 2)
        self.path = folder / "calls"
        self.settings = attrs.evolve(settings, calls=self.path)
        self.calls = Calls(self.settings, SharedMemory(settings.vchan, 2))
        self.calls.dom0 = self
        self.theirs = Channels(SharedMemory(settings.vchan, 3), lambda *_: None)
        self.nursery = nursery
        self.behave: Behave = echo
        self.asked: list[dict[str, Any]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.services: list[Service] = []
        self.answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] = self.grant
        self._numbers = itertools.count(16)
        self._clients: list[Client] = []
        self._used: set[int] = set()  # ports with a call

    # dom0

    async def call(
        self, method: str, params: dict[str, Any], *, timeout: float, until_answered: bool = False
    ) -> dict[str, Any]:
        """As Peer.call of the control channel."""
        assert method == "service.call" and until_answered and timeout > 0
        SCHEMA.parse_params(method, params)
        self.asked.append(params)
        answer = await self.answer(params)
        SCHEMA.parse_result(method, answer)
        return answer

    def tell(self, method: str, params: dict[str, Any]) -> None:
        SCHEMA.parse_params(method, params)
        self.told.append((method, params))

    def ended(self) -> list[dict[str, Any]]:
        """What was told of ends."""
        return [params for method, params in self.told if method == "service.ended"]

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """A request of dom0 to the agent."""
        handlers = {**self.calls.handlers, **self.calls.harmless}
        SCHEMA.parse_params(method, params)
        answer = await handlers[method](None, params)  # type: ignore[arg-type]
        SCHEMA.parse_result(method, answer)
        return answer or {}

    async def grant(self, params: dict[str, Any]) -> dict[str, Any]:
        """The call is allowed; the other VM begins."""
        both = set(self.theirs.idle()) & set(self.calls.channels.idle())
        idle = sorted(both - self._used)
        port = idle[0] if idle else next(self._numbers)
        self._used.add(port)
        call = f"{next(self._numbers):032x}"
        if not idle:
            left, right = ORDERS
            await self.ask("channel.listen", peer=3, port=port, left_order=left, right_order=right)
        self.nursery.start_soon(self._serve, call, port, not idle)
        return self.granted(call, port, not idle)

    def granted(self, call: str, port: int, new: bool) -> dict[str, Any]:
        return {
            **{"call": call, "request": "a1", "peer": 3, "port": port, "new": new},
            "target": None,
        }

    async def _serve(self, call: str, port: int, new: bool) -> None:
        channel = await (self.theirs.connect(2, port) if new else self.theirs.take(2, port))
        service = Service(call)
        self.services.append(service)
        pump = CallPump(channel, "service", bytes.fromhex(call), service.hear)
        self.nursery.start_soon(self.behave, service, pump)
        end = await pump.run(*service.ends, shutdown=True)
        self._used.discard(port)
        self.theirs.give_back(channel, "" if end.is_reusable else end.reason)

    # programs

    def connect(self) -> Client:
        client = Client(self.path)
        self._clients.append(client)
        return client

    async def run(self, message: Call = CALL, written: bytes = b"") -> tuple[Ended, bytes, bytes]:
        """One call by a program of its own: how it ended, and its output."""
        client = self.connect()
        end, out, err = await client.run(message, written)
        client.close()
        return end, out, err

    async def until(self, is_so: Callable[[], Any]) -> None:
        with trio.fail_after(PATIENCE):
            while not is_so():  # noqa: ASYNC110 - what it waits for is the code's own
                await trio.sleep(0.001)

    def close(self) -> None:
        for each in (*self._clients, *self.services):
            each.close()


class Client:
    """A program that calls."""

    def __init__(self, path: Path) -> None:
        self.raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.raw.connect(str(path))
        self.packets = PacketSocket(self.raw)
        self.stream: trio.SocketStream | None = None
        self.errors: trio.SocketStream | None = None

    def send(self, message: Message, *descriptors: int) -> None:
        self.packets.send_now(build(message), descriptors)

    def call(self, message: Call = CALL) -> None:
        """Asks, with a socket for input and output and one for errors."""
        self._close_streams()
        ours, theirs = socket.socketpair()
        errors, their_errors = socket.socketpair()
        self.send(message, theirs.fileno(), theirs.fileno(), their_errors.fileno())
        theirs.close()
        their_errors.close()
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self.errors = trio.SocketStream(trio.socket.from_stdlib_socket(errors))

    async def hear(self) -> Message | None:
        with trio.fail_after(PATIENCE):
            raw = await self.packets.receive(DATAGRAM_MAX)
        return parse(raw, AGENT) if raw else None

    async def end(self) -> Ended:
        """The end, without what comes before."""
        while not isinstance(said := await self.hear(), Ended):
            assert isinstance(said, Started)
        return said

    async def run(self, message: Call, written: bytes) -> tuple[Ended, bytes, bytes]:
        self.call(message)
        assert self.stream is not None and self.errors is not None
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(written)
            await self.stream.send_eof()
            out = b"".join([data async for data in self.stream])
            err = b"".join([data async for data in self.errors])
            return await self.end(), out, err

    def close(self) -> None:
        self.packets.close()
        self._close_streams()

    def _close_streams(self) -> None:
        for each in (self.stream, self.errors):
            if each is not None:
                each.socket.close()
        self.stream = self.errors = None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(tmp_path, nursery)
        await nursery.start(made.theirs.run)
        await nursery.start(made.calls.run)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


# How a call goes


async def test_a_program_gets_what_the_service_writes_and_how_it_exits(world: World) -> None:
    end, out, err = await world.run(written=b"there and back")
    assert (out, err) == (b"there and back", b"echo\n")
    assert end == Ended("exited", 3, 3, "", "", "", "a1")
    assert world.asked == [
        {
            "service": "work.Echo",
            "argument": "+x",
            "target": "vault",
            "user": None,
            "uid": os.getuid(),
        }
    ]
    [told] = world.ended()
    assert told["reusable"] and told["started_s"] is not None
    assert (told["stdin"], told["stdout"], told["stderr"]) == (14, 14, 5)


@pytest.mark.parametrize(("number", "said"), [(9, "the service was killed by SIGKILL"), (13, "")])
async def test_a_signal_is_named_but_that_of_a_pipe_without_a_reader(
    world: World, number: int, said: str
) -> None:
    async def die(service: Service, pump: CallPump) -> None:
        service.close()
        pump.exit("signalled", number)

    world.behave = die
    end, _, _ = await world.run()
    assert (end.kind, end.exit_status, end.text) == ("signalled", 128 + number, said)


async def test_one_connection_and_one_channel_serve_call_after_call(world: World) -> None:
    client = world.connect()
    for number in range(3):
        end, out, _ = await client.run(CALL, b"%d" % number)
        assert (end.exit_status, out) == (3, b"%d" % number)
        await world.until(world.theirs.idle)
        assert world.calls.channels.idle() == world.theirs.idle() == (16,)
    assert len({service.call for service in world.services}) == 3


async def test_the_start_is_said_before_the_end(world: World) -> None:
    client = world.connect()
    client.call()
    assert client.stream is not None
    await client.stream.send_eof()
    assert await client.hear() == Started(f"{17:032x}", "a1")
    assert isinstance(await client.hear(), Ended)


async def test_signals_reach_the_service_and_senseless_ones_nobody(world: World) -> None:
    client = world.connect()
    client.send(Signal(15))  # there is no call
    client.call()
    assert isinstance(await client.hear(), Started)
    for number in (0, 255, 10):
        client.send(Signal(number))
    await world.until(lambda: world.services[0].signals)
    assert world.services[0].signals == [10]


async def test_many_calls_at_once_do_not_mix(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one_of_many, world, b"%d" % number * 5000)
    assert len(world.ended()) == 8


async def one_of_many(world: World, data: bytes) -> None:
    end, out, _ = await world.run(written=data)
    assert (end.exit_status, out) == (3, data)


# How it does not go


async def test_a_denied_one_hears_that_and_the_request_alone(world: World) -> None:
    async def deny(_params: dict[str, Any]) -> dict[str, Any]:
        raise CallError("denied", "dom0's policy does not allow it", {"request": "b2"})

    world.answer = deny
    end, out, err = await world.run()
    assert (out, err) == (b"", b"")
    text = "denied: dom0's policy does not allow it"
    assert end == Ended("refused", 0, 126, text, "", "", "b2")
    assert not world.told


async def test_dom0_s_users_hear_the_rule_and_what_to_do(world: World) -> None:
    async def deny(_params: dict[str, Any]) -> dict[str, Any]:
        data = {"request": "b2", "rule": "50.policy:3", "text": "* * * * deny", "hint": "ask\x1b"}
        raise CallError("denied", "no\n", data)

    world.answer = deny
    end, _, _ = await world.run()
    assert end[3:] == ("denied: no_", "50.policy:3: * * * * deny", "ask_", "b2")


@pytest.mark.parametrize("code", ["not_found", "busy", "quota", "unavailable", "timeout", "failed"])
async def test_what_dom0_cannot_do_is_a_problem_with_words(world: World, code: str) -> None:
    async def fail(_params: dict[str, Any]) -> dict[str, Any]:
        raise CallError(code, "64 calls of this VM run, which is the most")

    world.answer = fail
    end, _, _ = await world.run()
    word = code.replace("_", " ")
    assert end[:4] == ("problem", 0, 125, f"{word}: 64 calls of this VM run, which is the most")


async def test_without_dom0_it_is_unavailable(world: World) -> None:
    world.calls.dom0 = None
    end, _, _ = await world.run()
    assert (end.kind, end.exit_status) == ("problem", 125)
    assert end.text == "unavailable: dom0's service is not reachable from this VM"


@pytest.mark.parametrize(
    "wrong",
    [
        CALL._replace(service="a b"),
        CALL._replace(service=""),
        CALL._replace(argument="x"),
        CALL._replace(argument="+/"),
        CALL._replace(target="no VM"),
        CALL._replace(target="@nothing"),
        CALL._replace(user="-x"),
    ],
)
async def test_what_is_no_name_is_refused_in_words_and_dom0_not_asked(
    world: World, wrong: Call
) -> None:
    end, _, _ = await world.run(wrong)
    assert (end.kind, end.exit_status) == ("problem", 125)
    assert end.text.startswith("usage: "), end.text
    assert not world.asked


async def test_a_program_of_another_version_is_told_so(world: World) -> None:
    end, _, _ = await world.run(CALL._replace(version=2))
    assert end.text == "usage: this agent speaks version 1 of the call socket, and not 2"


async def test_a_vm_that_does_not_connect_is_a_problem_and_told(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    async def grant(_params: dict[str, Any]) -> dict[str, Any]:
        await world.ask("channel.listen", peer=3, port=40, left_order=14, right_order=14)
        return world.granted("1" * 32, 40, True)

    world.answer = grant
    client = world.connect()
    client.call()
    end = await client.end()  # its streams are closed in a thread, which this clock does not see
    assert end.exit_status == 125
    assert "did not connect within 10 s" in end.text
    [told] = world.ended()
    assert (told["kind"], told["reusable"]) == ("problem", False)
    assert world.calls.channels.idle() == ()


async def test_a_failure_of_the_agent_is_an_end_that_dom0_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(calling, "CallPump", fail)
    world.behave = until_aborted
    client = world.connect()
    client.call()
    end = await client.end()
    said = "failed: the call could not be carried: the agent of this VM failed"
    assert (end.exit_status, end.text) == (125, said)
    [told] = world.ended()
    assert (told["kind"], told["reusable"]) == ("problem", False)
    assert "a mistake of ours" in caplog.text


async def test_the_end_of_the_other_vm_is_lost_and_never_a_success(world: World) -> None:
    async def vanish(service: Service, pump: CallPump) -> None:
        await service.stdout.send_all(b"some")
        await service.stdin.receive_some()
        await world.until(lambda: pump.counts().stdout)  # it is in the channel
        scope.cancel()

    scope = trio.CancelScope()
    serve = world._serve

    async def serve_until_cancelled(call: str, port: int, new: bool) -> None:
        with scope:
            await serve(call, port, new)

    world._serve = serve_until_cancelled  # type: ignore[method-assign]
    world.behave = vanish
    end, out, _ = await world.run(written=b"x")
    assert (end.kind, end.exit_status, out) == ("lost", 125, b"some")
    assert end.text.startswith("lost: ")
    assert not world.ended()[0]["reusable"]


# A program that goes away


async def test_one_that_goes_while_dom0_decides_withdraws_its_question(world: World) -> None:
    withdrawn = trio.Event()

    async def think(_params: dict[str, Any]) -> dict[str, Any]:
        try:
            await trio.sleep_forever()
        finally:
            withdrawn.set()
        return {}

    world.answer = think
    client = world.connect()
    client.call()
    await world.until(lambda: world.asked)
    client.close()
    with trio.fail_after(PATIENCE):
        await withdrawn.wait()
    assert not world.told


async def test_one_that_goes_as_dom0_allows_it_is_an_ordinary_aborted_call(world: World) -> None:
    async def grant_too_late(params: dict[str, Any]) -> dict[str, Any]:
        with trio.CancelScope(shield=True):
            await world.until(lambda: trio.current_effective_deadline() == -float("inf") or gone)
            return await world.grant(params)

    gone: list[bool] = []
    world.behave = until_aborted
    world.answer = grant_too_late
    client = world.connect()
    client.call()
    await world.until(lambda: world.asked)
    client.packets.close()
    gone.append(True)
    await world.until(world.ended)
    [told] = world.ended()
    assert (told["kind"], told["reusable"]) == ("aborted", True)
    assert world.calls.channels.idle() == (16,), "the next call has the channel"


async def test_one_that_goes_in_the_middle_aborts_the_service(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    assert isinstance(await client.hear(), Started)
    client.packets.close()  # its streams end with it, or later
    await world.until(world.ended)
    assert world.ended()[0]["kind"] == "aborted"
    await world.until(lambda: "CALLER_GONE" in world.services[0].events)


async def test_one_that_says_that_it_has_enough_still_hears_the_end(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    assert isinstance(await client.hear(), Started)
    client.packets.finish()
    end = await client.end()
    assert (end.kind, end.exit_status) == ("aborted", 125)


async def test_one_that_does_not_read_what_it_is_told_ends(world: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller = callers._Caller(
        PacketSocket(ours), 0, world.calls, world.nursery.start_soon, lambda _caller: None
    )
    with pytest.raises(BlockingIOError):
        while True:
            ours.send(b"x" * 1000)
    caller._started("0" * 32, "1")
    assert ours.fileno() < 0
    theirs.close()


# What dom0 ends


async def test_dom0_ends_a_call_with_its_own_words(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    said = await client.hear()
    assert isinstance(said, Started)
    kill = {"kind": "problem", "status": 0, "text": "dom0's user ended it"}
    await world.ask("service.kill", call=said.call, **kill)
    end = await client.end()
    assert end[:4] == ("problem", 0, 125, "failed: dom0's user ended it")
    assert (world.ended()[0]["kind"], world.ended()[0]["text"]) == (
        kind_and_text := (
            "problem",
            "dom0's user ended it",
        )
    ), kind_and_text


@pytest.mark.parametrize("early", [False, True])
async def test_dom0_ends_a_call_whose_channel_never_comes(world: World, early: bool) -> None:
    kill = {"call": "1" * 32, "kind": "lost", "status": 0, "text": "the agent of vault is gone"}

    async def grant(_params: dict[str, Any]) -> dict[str, Any]:
        await world.ask("channel.listen", peer=3, port=40, left_order=14, right_order=14)
        if early:  # dom0's two messages are read one right after the other
            await world.ask("service.kill", **kill)
        return world.granted("1" * 32, 40, True)

    world.answer = grant
    client = world.connect()
    client.call()
    if not early:
        await world.until(lambda: world.calls._running)
        await trio.testing.wait_all_tasks_blocked()
        await world.ask("service.kill", **kill)
    end = await client.end()
    assert end[:4] == ("lost", 0, 125, "lost: the agent of vault is gone")
    assert len(world.ended()) == 1
    await world.until(lambda: not world.calls.channels.idle())


async def test_a_kill_of_what_has_ended_does_nothing(world: World) -> None:
    for number in range(200):
        await world.ask("service.kill", call=f"{number:032x}", kind="problem", status=0, text="no")
    assert len(world.calls._killed_early) <= 64
    end, _, _ = await world.run()
    assert end.exit_status in (3, 125)


# What runs


async def test_dom0_hears_what_runs_page_by_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.calls.calls.RUNNING_PAGE_MAX", 2)
    world.behave = until_aborted
    for _ in range(3):
        client = world.connect()
        client.call()
        assert isinstance(await client.hear(), Started)
    first = await world.ask("call.running", after=None)
    assert (len(first["calls"]), first["more"]) == (2, True)
    last = await world.ask("call.running", after=first["calls"][-1]["call"])
    assert (len(last["calls"]), last["more"]) == (1, False)
    names = [each["call"] for each in first["calls"] + last["calls"]]
    assert names == sorted(service.call for service in world.services)
    running = first["calls"][0]
    said = (running["side"], running["service"], running["argument"])
    assert said == ("caller", "work.Echo", "+x")


# Programs that mean no good


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01",
        b"\x63",
        build(Started("", "")),
        build(CALL) + b"x",
        b"\x01" + b"x" * 5000,
        build(CALL),
    ],
    ids=["cut", "unknown", "an agent's", "left over", "too long", "without descriptors"],
)
async def test_a_breach_ends_that_connection_alone(world: World, raw: bytes) -> None:
    before = descriptors()
    for passed in (0, 2, 4, 100):
        client = world.connect()
        rights = array.array("i", [client.raw.fileno()] * passed)
        client.raw.sendmsg([raw], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] * bool(passed))
        assert await client.hear() is None
        client.close()
    await world.until(lambda: descriptors() <= before)
    assert not world.asked
    assert (await world.run())[0].exit_status == 3


async def test_a_second_call_at_once_is_a_breach(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    assert isinstance(await client.hear(), Started)
    client.send(CALL, *[client.raw.fileno()] * 3)
    await world.until(world.ended)
    assert world.ended()[0]["kind"] == "aborted"
    assert len(world.asked) == 1


async def test_the_wrong_end_of_a_pipe_is_refused_in_words(world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    readable, writable = os.pipe()
    nothing = os.open(tmp_path / "fifo", os.O_PATH)
    both = os.open(tmp_path / "fifo", os.O_RDWR)
    for place, bad in ((0, writable), (1, readable), (2, readable), (0, nothing), (1, nothing)):
        client = world.connect()
        three = [both] * 3
        three[place] = bad
        client.send(CALL, *three)
        end = await client.end()
        said = f"usage: {callers.STREAMS[place]} is the wrong end of a pipe"
        assert (end.exit_status, end.text) == (125, said)
        client.close()
    assert not world.asked
    for each in (readable, writable, nothing, both):
        os.close(each)


async def test_no_descriptor_is_carried_that_could_make_the_agent_wait(
    world: World, tmp_path: Path
) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    good, other = socket.socketpair()
    datagrams, last = socket.socketpair(type=socket.SOCK_DGRAM)
    listening = socket.socket()
    listening.listen()
    before = descriptors()
    for bad, what in (
        (file, "neither a pipe nor a socket"),
        (datagrams.fileno(), "a socket that carries no stream"),
        (listening.fileno(), "a socket that carries no stream"),
    ):
        for place, name in enumerate(callers.STREAMS):
            client = world.connect()
            three = [good.fileno()] * 3
            three[place] = bad
            client.send(CALL, *three)
            end = await client.end()
            assert (end.exit_status, end.text) == (125, f"usage: {name} is {what}")
            client.close()
    await world.until(lambda: descriptors() <= before)
    os.close(file)
    for each in (good, other, datagrams, last, listening):
        each.close()
    assert not world.asked


async def test_places_are_bounded_and_one_user_leaves_some_to_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "OF_ONE_USER_MAX", 2)
    silent = [world.connect() for _ in range(2)]
    end, _, _ = await world.run()
    assert end.text == "quota: 2 programs of this user call services, which is the most"
    assert end.hint == "end some of them: ss -xp shows which they are"
    monkeypatch.setattr(callers, "CALLERS_MAX", 2)
    end, _, _ = await world.run()
    assert end.text == "quota: 2 programs of this VM call services, which is the most"
    silent[0].close()
    monkeypatch.undo()
    assert (await world.run())[0].exit_status == 3


async def test_a_connection_without_calls_is_closed(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    client = world.connect()
    with trio.fail_after(2 * callers.IDLE_SECONDS):
        assert await client.packets.receive(DATAGRAM_MAX) == b""


async def test_calls_leave_nothing(world: World) -> None:
    client = world.connect()
    before = 0
    for number in range(50):
        await client.run(CALL, b"x")
        await world.until(world.theirs.idle)  # so that there is one channel
        if number == 0:
            before = descriptors()
    await world.until(lambda: descriptors() <= before)
    assert not world.calls._running and not world.calls._killed_early


async def test_what_the_agent_s_end_cuts_off_is_closed(tmp_path: Path) -> None:
    crew()  # the loop's, which has a descriptor
    before = descriptors()
    async with trio.open_nursery() as nursery:
        world = World(tmp_path, nursery)
        await nursery.start(world.theirs.run)
        await nursery.start(world.calls.run)
        world.behave = until_aborted
        client = world.connect()
        client.call()
        assert isinstance(await client.hear(), Started)
        nursery.cancel_scope.cancel()
    end = await client.end()
    assert end.exit_status == 125
    assert await client.hear() is None
    for each in world.services:
        each.close()
    world.close()
    assert descriptors() <= before
    assert not world.path.exists()


# In dom0


class Somebody:
    """The other end of a connection, as far as `members` looks."""

    def __init__(self, uid: int, *groups: int) -> None:
        self.uid = uid
        self.groups = groups

    @property
    def credentials(self) -> Somebody:
        return self


@pytest.mark.parametrize(
    ("uid", "groups", "why"),
    [
        (0, [], None),
        (os.geteuid(), [], None),
        (1000, [7, 4711], None),
        (1000, [7], "only root and members of the group pedos may call services from dom0"),
    ],
)
def test_in_dom0_root_and_the_desktop_s_users_call(
    monkeypatch: pytest.MonkeyPatch, uid: int, groups: list[int], why: str | None
) -> None:
    class Group:
        gr_gid = 4711

    monkeypatch.setattr("grp.getgrnam", lambda name: Group)
    assert members.may_call(Somebody(uid, *groups)) == why  # type: ignore[arg-type]


def test_without_the_group_dom0_s_services_are_root_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("grp.getgrnam", unknown)
    why = members.may_call(Somebody(1000, 4711))  # type: ignore[arg-type]
    assert why == "only root may call services from dom0: there is no group pedos"
