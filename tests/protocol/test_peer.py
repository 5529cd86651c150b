from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_host.unix import connect_unix, listen_unix
from pedos_protocol import codec
from pedos_protocol.connection import PENDING_MAX, VERSIONS, Connection
from pedos_protocol.errors import CallError, LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import Answer, ErrorAnswer, Event, Hello, NeedData, Notice, Request
from pedos_vchan import quota
from pedos_vchan.peer import Peer, open_peer
from pedos_vchan.reading import HELLO_TIMEOUT
from pedos_vchan.session import CANCELLED

from tests.patience import PATIENCE

Params = dict[str, Any]


async def echo(_peer: Peer, params: Params) -> Params:
    return params


async def forever(_peer: Peer, _params: Params) -> None:
    await trio.sleep_forever()


async def busy(_peer: Peer, _params: Params) -> None:
    raise CallError("busy", "it is attached to work", {"hint": "detach it"})


async def broken(_peer: Peer, _params: Params) -> None:
    raise ZeroDivisionError


async def no_map(_peer: Peer, _params: Params) -> Params:
    return [1]  # type: ignore[return-value]


async def too_large(_peer: Peer, _params: Params) -> Params:
    return {"x": b"x" * codec.FRAME_MAX}


async def nothing(_peer: Peer, _params: Params) -> None:
    pass


HANDLERS = {
    "test.echo": echo,
    "test.forever": forever,
    "test.busy": busy,
    "test.broken": broken,
    "test.no_map": no_map,
    "test.too_large": too_large,
    "test.nothing": nothing,
}


@contextlib.asynccontextmanager
async def two_peers(**keywords: Any) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two peers over streams in memory; `keywords` go to the second, which serves HANDLERS."""
    one, other = trio.testing.memory_stream_pair()
    keywords = {"handlers": HANDLERS, "program": "served 1", "name": "served", **keywords}
    async with trio.open_nursery() as nursery:
        client = Peer(one, program="client 1", handlers={}, name="client")
        server = Peer(other, **keywords)
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        yield client, server
        client.close()


HELLO = Hello((1, 1), "raw 1")


class Full(trio.abc.SendStream):
    """A stream whose other end takes nothing."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class BreaksAfter(trio.abc.ReceiveStream):
    """A stream that gives these bytes and then breaks."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        data, self.data = self.data, b""
        if not data:
            raise trio.BrokenResourceError("the VM was killed")
        return data

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Raw:
    """The far end of a peer's stream, spoken to frame by frame: it may break any rule."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self.stream = stream
        self.connection = Connection()

    async def hello(self) -> None:
        await self.say(HELLO)
        assert isinstance(await self.hear(), Hello)

    async def say(self, event: Event) -> None:
        await self.stream.send_all(self.connection.send(event))

    async def say_frame(self, message: list[Any]) -> None:
        await self.stream.send_all(codec.encode(message))

    async def hear(self) -> Event:
        while isinstance(event := self.connection.next_event(), NeedData):
            self.connection.receive_data(await self.stream.receive_some())
        return event


@contextlib.asynccontextmanager
async def against_raw(
    error: type[Exception] | None = None, match: str = "", **keywords: Any
) -> AsyncIterator[tuple[Raw, Peer]]:
    """A raw end and the peer that it speaks to; the peer must end with `error` within the block,
    or not at all."""
    one, other = trio.testing.memory_stream_pair()
    keywords = {"handlers": HANDLERS, "program": "served 1", "name": "served", **keywords}
    peer = Peer(other, **keywords)
    ended = trio.Event()

    async def run() -> None:
        if error is None:
            await peer.run()
        else:
            with pytest.raises(error, match=match):
                await peer.run()
        ended.set()

    with trio.fail_after(1000):  # of the clock that jumps, or a hang
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield Raw(one), peer
            if error is None:
                peer.close()
            await ended.wait()
            assert not peer.is_open


# Calls


async def test_calls_go_both_ways() -> None:
    async with two_peers() as (client, server):
        assert await client.call("test.echo", {"a": 1}, timeout=PATIENCE) == {"a": 1}
        assert await client.call("test.nothing", {}, timeout=PATIENCE) == {}
        with pytest.raises(CallError, match=r"'test\.echo' is not served here"):
            await server.call("test.echo", {}, timeout=PATIENCE)
        assert client.their_hello == Hello(VERSIONS, "served 1")
        assert client.version == server.version == VERSIONS[1]
        assert client.is_open


async def test_an_error_answer_is_raised_with_its_code_and_data() -> None:
    async with two_peers() as (client, _):
        with pytest.raises(CallError) as caught:
            await client.call("test.busy", {}, timeout=PATIENCE)
    assert caught.value.code == "busy"
    assert caught.value.message == "it is attached to work"
    assert caught.value.data == {"hint": "detach it"}


@pytest.mark.parametrize("method", ["test.broken", "test.no_map", "test.too_large"])
async def test_a_handler_that_fails_fails_its_call_and_nothing_else(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_peers() as (client, _):
        with pytest.raises(CallError) as caught:
            await client.call(method, {}, timeout=PATIENCE)
        assert caught.value.code == "failed"
        assert await client.call("test.echo", {}, timeout=PATIENCE) == {}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "served" in caplog.text


async def test_an_error_message_of_any_length_arrives() -> None:
    async def wordy(_peer: Peer, _params: Params) -> None:
        raise CallError("failed", "x" * 10_000)

    async with two_peers(handlers={"test.wordy": wordy}) as (client, _):
        with pytest.raises(CallError, match=r"^x{1024}$"):
            await client.call("test.wordy", {}, timeout=PATIENCE)


async def test_requests_without_a_handler_can_be_forwarded() -> None:
    async def forward(_peer: Peer, method: str, params: Params) -> Params:
        return {"method": method, "params": params}

    async with two_peers(default_handler=forward) as (client, _):
        result = await client.call("device.list", {"vms": None}, timeout=PATIENCE)
        assert result == {"method": "device.list", "params": {"vms": None}}
        assert await client.call("test.echo", {"own": True}, timeout=PATIENCE) == {"own": True}


async def test_a_request_that_cannot_be_sent_takes_no_place() -> None:
    async with two_peers() as (client, _):
        for _ in range(PENDING_MAX + 1):
            with pytest.raises(LocalProtocolError):
                await client.call("test.echo", {"x": object()}, timeout=PATIENCE)
        assert await client.call("test.echo", {}, timeout=PATIENCE) == {}
        for timeout in (0, -1, 86_401, math.inf, math.nan):
            with pytest.raises(ValueError, match="time-out"):
                await client.call("test.echo", {}, timeout=timeout)


async def test_a_thousand_calls_at_once_are_all_answered() -> None:
    answered = set()

    async with two_peers() as (client, _):

        async def call(number: int) -> None:
            result = await client.call("test.echo", {"number": number}, timeout=60)
            answered.add(result["number"])

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(call, number)
    assert answered == set(range(1000))


async def test_notices_are_handled_in_order_and_an_unknown_one_by_nobody() -> None:
    seen = []

    async def note(_peer: Peer, params: Params) -> None:
        await trio.testing.wait_all_tasks_blocked()
        seen.append(params["number"])
        if params["number"] == 1:
            raise ZeroDivisionError

    async with two_peers(handlers={"test.note": note, "test.echo": echo}) as (client, _):
        for number in range(4):
            await client.notify("test.note", {"number": number})
            await client.notify("test.unknown", {})
        await client.call("test.echo", {}, timeout=PATIENCE)
    assert seen == [0, 1, 2, 3]


# Time


async def test_a_call_without_an_answer_times_out(autojump_clock: trio.testing.MockClock) -> None:
    async with two_peers() as (client, _):
        before = trio.current_time()
        with pytest.raises(CallError) as caught:
            await client.call("test.forever", {}, timeout=30)
        assert caught.value.code == "timeout"
        assert trio.current_time() - before == pytest.approx(30)
        assert await client.call("test.echo", {}, timeout=1) == {}


async def test_a_handler_is_stopped_at_the_deadline_of_its_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with against_raw() as (raw, _):
        await raw.hello()
        await raw.say(Request(1, "test.forever", {}, 2500))
        before = trio.current_time()
        answer = await raw.hear()
        assert isinstance(answer, ErrorAnswer)
        assert (answer.code, trio.current_time() - before) == ("timeout", pytest.approx(2.5))


async def test_who_has_to_know_hears_the_answer_though_it_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    done: list[str] = []

    async def serve(_peer: Peer, params: Params) -> Params:
        if params["shielded"]:  # the cancellation comes too late for this one
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            return {"done": True}
        await trio.sleep_forever()
        return {}

    async def call(client: Peer, shielded: bool) -> None:
        try:
            answer = await client.call(
                "test.serve", {"shielded": shielded}, timeout=60, until_answered=True
            )
            done.append(str(answer))
        except CallError as error:
            done.append(error.message)
        assert trio.current_effective_deadline() == -math.inf, "and it is cancelled all the same"

    async with (
        two_peers(handlers={"test.serve": serve}) as (client, _server),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(call, client, True)
        nursery.start_soon(call, client, False)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert sorted(done) == ["test.serve was cancelled", "{'done': True}"]


async def test_a_handler_is_cancelled_with_its_caller(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends: list[float] = []

    async def serve(_peer: Peer, params: Params) -> Params:
        try:
            await trio.sleep(params["seconds"])
        finally:
            ends.append(trio.current_time())
        return {}

    async with two_peers(handlers={"test.serve": serve}) as (client, server):
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for seconds in (2, 30):
                call = partial(client.call, "test.serve", {"seconds": seconds}, timeout=60)
                nursery.start_soon(call)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert ends == [began + 1, began + 1]
        # Both are answered, so their places are free again; and nobody else is disturbed.
        assert server._connection.theirs_in_flight == client._connection.ours_in_flight == 0
        assert await client.call("test.serve", {"seconds": 3}, timeout=60) == {}


async def test_a_word_of_cancelling_that_makes_no_sense_does_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def serve(_peer: Peer, _params: Params) -> Params:
        await trio.sleep(1)
        return {"a": 1}

    async with two_peers(handlers={"test.serve": serve}) as (client, _):

        async def call() -> None:
            assert await client.call("test.serve", {}, timeout=60) == {"a": 1}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            for untrusted_id in (0, 2, -1, 1.0, True, None, [1], {"id": 1}, "1", 2**64 - 1):
                await client.notify(CANCELLED, {"id": untrusted_id})
            await client.notify(CANCELLED, {})


async def test_what_a_handlers_nursery_raises_at_the_deadline_fails_that_request_alone(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def messy(_peer: Peer, _params: Params) -> None:
        async def break_when_stopped() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_when_stopped)
            nursery.start_soon(trio.sleep_forever)

    async with against_raw(handlers={**HANDLERS, "test.messy": messy}) as (raw, _):
        await raw.hello()
        await raw.say(Request(1, "test.messy", {}, 2500))
        answer = await raw.hear()
        assert isinstance(answer, ErrorAnswer)
        assert (answer.id, answer.code) == (1, "failed")
        await raw.say(Request(2, "test.echo", {}, 2500))
        assert await raw.hear() == Answer(2, {})
    assert "test.messy failed" in caplog.text


async def test_the_other_side_is_told_how_long_its_caller_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with against_raw() as (raw, peer):
        await raw.hello()
        with pytest.raises(CallError):
            await peer.call("vm.list", {}, timeout=7.5)
        with trio.move_on_after(2):
            await peer.call("vm.list", {}, timeout=600)
        first, _, second = [await raw.hear() for _ in range(3)]
        assert isinstance(first, Request)
        assert isinstance(second, Request)
        assert (first.deadline_ms, second.deadline_ms) == (7500, 2000)


async def test_the_other_side_is_told_that_its_callers_time_is_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A pause of that side does not count in its own time."""
    async with against_raw() as (raw, peer):
        await raw.hello()
        await expect_timeout(peer, 20)
        request = await raw.hear()
        assert isinstance(request, Request)
        assert await raw.hear() == Notice(CANCELLED, {"id": request.id})


async def test_a_handler_that_catches_up_is_not_begun_for_a_caller_that_has_given_up() -> None:
    done = []

    async def change(peer: Peer, params: Params) -> None:
        await peer.caught_up()
        done.append(params["n"])
        await peer.caught_up()

    async with against_raw(handlers={"test.change": change}) as (raw, _):
        await raw.hello()
        frames = [
            raw.connection.send(Request(number, "test.change", {"n": number}, 1000))
            for number in range(3)
        ]
        taken_back = raw.connection.send(Notice(CANCELLED, {"id": 1}))
        await raw.stream.send_all(b"".join([*frames, taken_back]))
        answers = [await raw.hear() for _ in frames]
        assert sorted(done) == [0, 2]
        refused = next(answer for answer in answers if isinstance(answer, ErrorAnswer))
        assert (refused.id, refused.code) == (1, "timeout")


async def test_an_answer_that_comes_too_late_is_passed_over_and_frees_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with against_raw() as (raw, peer):
        await raw.hello()
        requests = []
        async with trio.open_nursery() as nursery:
            for _ in range(PENDING_MAX - 1):
                nursery.start_soon(expect_timeout, peer, 1)
            with trio.move_on_after(0.5):  # a caller that gives up takes its place just as well
                await peer.call("vm.list", {}, timeout=1)
        for _ in range(PENDING_MAX):
            event = await raw.hear()
            assert isinstance(event, Request)
            requests.append(event)
        told = [await raw.hear() for _ in range(PENDING_MAX)]
        for request in requests:
            assert Notice(CANCELLED, {"id": request.id}) in told
        await expect_timeout(peer, 5)  # no place is free
        await raw.say(Answer(requests[3].id, {"late": True}))

        async def answer_next() -> None:
            event = await raw.hear()
            assert isinstance(event, Request)
            await raw.say(Answer(event.id, {"late": False}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_next)
            assert await peer.call("vm.list", {}, timeout=5) == {"late": False}


async def expect_timeout(peer: Peer, timeout: float) -> None:
    with pytest.raises(CallError) as caught:
        await peer.call("vm.list", {}, timeout=timeout)
    assert caught.value.code == "timeout"


# Ends


async def test_when_the_other_side_hangs_up_all_that_wait_are_told() -> None:
    one, other = trio.testing.memory_stream_pair()
    raw, peer = Raw(one), Peer(other, program="x 1", handlers=HANDLERS, name="vm work")
    told = []

    async def call() -> None:
        with pytest.raises(CallError, match="connection to vm work has ended") as caught:
            await peer.call("vm.list", {}, timeout=60)
        told.append(caught.value.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        await raw.hello()
        for _ in range(PENDING_MAX + 5):  # some of them wait for a place
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        await raw.stream.aclose()
    assert told == ["unavailable"] * (PENDING_MAX + 5)
    await call()  # and one that comes later
    await peer.notify("operation.step", {})
    assert not peer.is_open


async def test_handlers_are_cancelled_when_the_other_side_hangs_up() -> None:
    stopped = trio.Event()

    async def wait(_peer: Peer, _params: Params) -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    one, other = trio.testing.memory_stream_pair()
    raw, peer = Raw(one), Peer(other, program="x 1", handlers={"test.wait": wait})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        await raw.hello()
        await raw.say(Request(1, "test.wait", {}, 60_000))
        await trio.testing.wait_all_tasks_blocked()
        await raw.stream.aclose()
    assert stopped.is_set()


async def test_a_handler_that_undoes_things_does_not_wait_for_a_peer_that_is_gone() -> None:
    undone = []

    async def careful(peer: Peer, _params: Params) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), pytest.raises(CallError) as caught:
                await peer.call("export.stop", {}, timeout=60)
            undone.append(caught.value.code)

    one, other = trio.testing.memory_stream_pair()
    raw, peer = Raw(one), Peer(other, program="x 1", handlers={"test.careful": careful})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        await raw.hello()
        await raw.say(Request(1, "test.careful", {}, 60_000))
        await trio.testing.wait_all_tasks_blocked()
        await raw.stream.aclose()
    assert undone == ["unavailable"]


async def test_closing_ends_the_run_and_the_stream() -> None:
    async with against_raw() as (raw, peer):
        await raw.hello()
        assert peer.is_open
        peer.close()
        assert await raw.stream.receive_some() == b""


async def test_a_stream_that_breaks_is_no_clean_end() -> None:
    _, other = trio.testing.memory_stream_pair()
    stream = trio.StapledStream(other.send_stream, BreaksAfter(Connection().send(HELLO)))
    with pytest.raises(trio.BrokenResourceError, match="the VM was killed"):
        await Peer(stream, program="x 1", handlers={}).run()


async def test_an_end_before_hello_is_no_clean_end() -> None:
    async with against_raw(trio.BrokenResourceError, "before its hello") as (raw, _):
        await raw.stream.aclose()


# What ends a peer that breaks the rules: each with a sentence of which


async def test_no_hello(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    async with against_raw(RemoteProtocolError, "no hello came within 5 s"):
        pass
    assert trio.current_time() - start == pytest.approx(HELLO_TIMEOUT)


async def test_a_hello_byte_by_byte_that_takes_too_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with against_raw(RemoteProtocolError, "no hello came within 5 s") as (raw, _):
        for byte in raw.connection.send(Hello((1, 1), "slow")):
            with contextlib.suppress(trio.BrokenResourceError):
                await raw.stream.send_all(bytes([byte]))
            await trio.sleep(1)


async def test_a_wrong_version() -> None:
    async with against_raw(RemoteProtocolError, "versions 3 to 9 are offered") as (raw, _):
        await raw.say(Hello((3, 9), "future"))


async def test_a_call_without_hello() -> None:
    async with against_raw(RemoteProtocolError, "Request came in state START") as (raw, _):
        await raw.say_frame([0, 1, "test.echo", {"deadline_ms": 1000}])


async def test_garbage() -> None:
    async with against_raw(RemoteProtocolError, "bytes is announced") as (raw, _):
        await raw.hello()
        await raw.stream.send_all(b"GET / HTTP/1.1\r\n\r\n")


async def test_a_frame_of_garbage() -> None:
    async with against_raw(RemoteProtocolError, "not readable MessagePack") as (raw, _):
        await raw.hello()
        await raw.stream.send_all(b"\x03\x00\x00\x00\xc1\xc1\xc1")


async def test_too_many_requests_at_once() -> None:
    async with against_raw(RemoteProtocolError, "more than 128 requests are in flight") as (raw, _):
        await raw.hello()
        for call_id in range(PENDING_MAX + 1):
            await raw.say_frame([0, call_id, "test.forever", {"deadline_ms": 600_000}])


async def test_a_flood_of_notices() -> None:
    async with against_raw(RemoteProtocolError, "^flood: ") as (raw, _):
        await raw.hello()
        flood = codec.encode([2, "test.unknown", {}]) * 1000
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await raw.stream.send_all(flood)
                await trio.testing.wait_all_tasks_blocked()


async def test_a_flood_of_large_frames() -> None:
    async with against_raw(RemoteProtocolError, "^flood: ") as (raw, _):
        await raw.hello()
        large = codec.encode([2, "test.unknown", {"x": b"x" * 60_000}])
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await raw.stream.send_all(large)
                sent += len(large)
                await trio.testing.wait_all_tasks_blocked()
    assert sent < 4 * 1024 * 1024


async def test_what_comes_slowly_enough_is_no_flood(autojump_clock: trio.testing.MockClock) -> None:
    async with against_raw() as (raw, _):
        await raw.hello()
        for call_id in range(3):
            await raw.stream.send_all(
                codec.encode([2, "test.unknown", {}]) * (quota.FRAMES_BURST // 2)
            )
            await trio.sleep(quota.FRAMES_BURST / quota.FRAMES_PER_SECOND)
            await raw.say(Request(call_id, "test.echo", {}, 1000))
            assert await raw.hear() == Answer(call_id, {})


async def test_a_peer_that_does_not_read() -> None:
    one, other = trio.testing.memory_stream_pair()
    peer = Peer(trio.StapledStream(Full(), other.receive_stream), program="x 1", handlers={})

    async def run() -> None:
        with pytest.raises(RemoteProtocolError, match="does not read: over 1048576 bytes"):
            await peer.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await one.send_all(Connection().send(HELLO))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(16):
            await peer.notify("operation.step", {"x": b"x" * 65_000})
            await trio.testing.wait_all_tasks_blocked()
            assert peer.is_open
        await peer.notify("operation.step", {"x": b"x" * 65_000})


async def test_what_only_a_handler_can_see() -> None:
    async def judge(peer: Peer, _params: Params) -> None:
        peer.fail(RemoteProtocolError("a report came that is none"))

    async with against_raw(
        RemoteProtocolError, "a report came that is none", handlers={"agent.report": judge}
    ) as (raw, _):
        await raw.hello()
        await raw.say(Request(1, "agent.report", {}, 1000))


# open_peer, where groups of exceptions are strict


def strictly(function: Any) -> None:
    trio.run(function, strict_exception_groups=True)


def test_open_peer_gives_an_open_peer() -> None:
    async def main() -> None:
        one, other = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(other, program="x 1", handlers=HANDLERS).run)
            async with open_peer(one, program="y 1", handlers={}) as peer:
                assert peer.is_open
                assert await peer.call("test.echo", {"a": 1}, timeout=PATIENCE) == {"a": 1}
            assert not peer.is_open

    strictly(main)


def test_open_peer_passes_on_what_its_block_raises() -> None:
    async def main() -> None:
        one, other = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Peer(other, program="x 1", handlers=HANDLERS).run)
            with pytest.raises(CallError, match="attached to work"):
                async with open_peer(one, program="y 1", handlers={}) as peer:
                    await peer.call("test.busy", {}, timeout=PATIENCE)

    strictly(main)


def test_open_peer_raises_what_is_wrong_with_the_other_side() -> None:
    async def main() -> None:
        one, other = trio.testing.memory_stream_pair()
        await other.send_all(bytes(4))
        with pytest.raises(RemoteProtocolError, match="empty frame"):
            async with open_peer(one, program="y 1", handlers={}):
                raise AssertionError("the block was entered")

        one, other = trio.testing.memory_stream_pair()
        await other.send_all(Connection().send(Hello((1, 1), "x")))
        with pytest.raises(RemoteProtocolError, match="empty frame"):
            async with open_peer(one, program="y 1", handlers={}) as peer:
                await other.send_all(bytes(4))
                await trio.testing.wait_all_tasks_blocked()
                assert not peer.is_open

    strictly(main)


def test_open_peer_can_be_cancelled_from_outside() -> None:
    async def main() -> None:
        one, other = trio.testing.memory_stream_pair()
        await other.send_all(Connection().send(Hello((1, 1), "x")))
        with trio.CancelScope() as scope:
            async with open_peer(one, program="y 1", handlers={}) as peer:
                scope.cancel()
                await peer.call("vm.list", {}, timeout=PATIENCE)
        assert scope.cancelled_caught

    strictly(main)


# Over real sockets


async def test_peers_over_a_unix_socket(tmp_path: Path) -> None:
    listener = await listen_unix(tmp_path / "sock", 0o600)

    async def serve(stream: trio.SocketStream) -> None:
        await Peer(stream, program="served 1", handlers=HANDLERS).run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        clients = [await connect_unix(tmp_path / "sock") for _ in range(5)]
        for number, stream in enumerate(clients):
            async with open_peer(stream, program="client 1", handlers={}) as peer:
                large = {"number": number, "x": b"x" * 60_000}
                assert await peer.call("test.echo", large, timeout=PATIENCE) == large
        nursery.cancel_scope.cancel()
