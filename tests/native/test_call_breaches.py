"""An end of a call that does what no correct one does loses its channel at once, and the reason is
told; nothing of what it sent is believed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import trio
from pedos_protocol import call_frames as frames
from pedos_protocol.call_frames import CALLER, SERVICE, Frame, build, number
from pedos_vchan.call_pump import CallEnd, CallPump, Event, EventKind
from pedos_vchan.stream import VchanStream

from tests.patience import PATIENCE

from .calling_pair import CALL, plumb, read_all
from .test_stream import receive_exactly

if TYPE_CHECKING:
    from .conftest import Pairs

OPENING = {CALLER: Frame(frames.CALL, CALL), SERVICE: Frame(frames.STARTED, CALL)}


def raw(sender: str, *wanted: Frame) -> bytes:
    return b"".join(build(frame, sender) for frame in wanted)


def opened(sender: str, *wanted: Frame) -> bytes:
    """What `sender` says in a call that has begun."""
    return raw(sender, OPENING[sender], *wanted)


CALLED = raw(CALLER, OPENING[CALLER])
EXITED = frames.exit_frame(frames.EXITED, 0)

TO_THE_CALLER = {
    "a frame out of turn": opened(SERVICE, Frame(frames.STARTED, CALL)),
    "another call's id": raw(SERVICE, Frame(frames.STARTED, bytes(16))),
    "a stream goes on after its end": opened(
        SERVICE, Frame(frames.STDOUT_EOF), Frame(frames.STDOUT, b"x")
    ),
    "credit for what was never sent": opened(SERVICE, number(frames.STDIN_CREDIT, 1)),
    "an exit before the streams' end": opened(SERVICE, Frame(frames.STDOUT_EOF), EXITED),
    "an impossible exit": raw(SERVICE, frames.exit_frame(frames.EXITED, 256)),
    "an unknown frame": opened(SERVICE) + bytes([99, 0, 0, 0, 0, 0, 0, 0]),
    "a frame of the wrong side": raw(CALLER, Frame(frames.ABORT)),
    "a header with reserved bits": bytes([frames.END, 1, 0, 0, 0, 0, 0, 0]),
    "a frame with an impossible length": bytes([frames.END, 0, 0, 0, 1, 0, 0, 0]),
}

TO_THE_SERVICE = {
    "a frame out of turn": raw(CALLER, Frame(frames.STDIN, b"x")),
    "another call's id": raw(CALLER, Frame(frames.CALL, bytes(16))),
    "a stream goes on after its end": opened(
        CALLER, Frame(frames.STDIN_EOF), Frame(frames.STDIN_EOF)
    ),
    "credit for what was never sent": opened(CALLER, number(frames.STDERR_CREDIT, 1)),
    "an impossible signal": opened(CALLER, number(frames.SIGNAL, 65)),
    "an end before the exit": opened(CALLER, Frame(frames.STDIN_EOF), Frame(frames.END)),
    "a frame of the wrong side": raw(SERVICE, EXITED),
}


async def against(
    pairs: Pairs, side: str, said: bytes, on_event: Callable[[Event], None] = lambda _: None
) -> CallEnd:
    """How a call ends at `side`, whose other end says this and goes on to listen."""
    one, two = await pairs.channels(17, 17)
    ours, theirs = (one, two) if side == CALLER else (two, one)
    ends: list[CallEnd] = []
    with trio.fail_after(PATIENCE):
        async with VchanStream(theirs) as stream, trio.open_nursery() as nursery:

            async def run() -> None:
                pump = CallPump(ours, side, CALL, on_event)  # type: ignore[arg-type]
                ends.append(await pump.run(-1, -1, -1))

            nursery.start_soon(run)
            if side == CALLER:
                assert await receive_exactly(stream, len(CALLED)) == CALLED
            await stream.send_all(said)
            while await stream.receive_some():
                pass
    assert ours.closed
    return ends[0]


@pytest.mark.parametrize("what", TO_THE_CALLER)
async def test_a_service_s_side_that_breaks_the_protocol_is_left(pairs: Pairs, what: str) -> None:
    end = await against(pairs, CALLER, TO_THE_CALLER[what])
    assert (end.kind, end.status, end.is_reusable, end.is_breach) == ("lost", 125, False, True)
    assert end.text == f"the other VM broke the protocol of calls: {what}"


@pytest.mark.parametrize("what", TO_THE_SERVICE)
async def test_a_caller_s_side_that_breaks_the_protocol_is_left(pairs: Pairs, what: str) -> None:
    told: list[Event] = []
    end = await against(pairs, SERVICE, TO_THE_SERVICE[what], told.append)
    assert (end.kind, end.status, end.is_breach) == ("lost", 125, True)
    assert end.reason == f"the other VM broke the protocol of calls: {what}"
    assert Event(EventKind.CALLER_GONE) in told


async def test_bytes_after_the_service_s_end_are_a_breach_that_changes_no_exit(
    pairs: Pairs,
) -> None:
    said = raw(SERVICE, frames.exit_frame(frames.REFUSED, 126, b"no\x1b[31m"), Frame(frames.END))
    end = await against(pairs, CALLER, said + b"!")
    assert (end.kind, end.status, end.is_breach) == ("refused", 126, True)
    assert end.text == "no_[31m"
    assert end.reason.endswith("bytes after the end")


async def test_another_call_s_frames_after_the_end_are_left_to_it(pairs: Pairs) -> None:
    """A caller may begin the next call at once; the service's side reads it when it is its turn."""
    one, two = await pairs.channels(17, 17)
    later = bytes(reversed(CALL))
    stream = VchanStream(one)
    ends: list[CallEnd] = []

    async def serve(call: bytes) -> None:
        pump = CallPump(two, "service", call)
        pump.exit("not_found", 127)
        ends.append(await pump.run(-1, -1, -1))

    answer = raw(SERVICE, frames.exit_frame(frames.NOT_FOUND, 127), Frame(frames.END))
    rest = raw(CALLER, Frame(frames.STDIN_EOF), Frame(frames.END))
    with trio.fail_after(PATIENCE):
        await stream.send_all(CALLED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, CALL)
            assert await receive_exactly(stream, len(answer)) == answer
            await stream.send_all(rest + raw(CALLER, Frame(frames.CALL, later)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, later)
            assert await receive_exactly(stream, len(answer)) == answer
            await stream.send_all(rest)
    assert [end.is_reusable for end in ends] == [True, True]


@pytest.mark.parametrize("missing", [4, 28])
async def test_a_frame_without_its_end_ends_with_its_channel(pairs: Pairs, missing: int) -> None:
    """Without part of its header, or of what follows that."""
    one, two = await pairs.channels(17, 17)
    stream = VchanStream(one)
    with trio.fail_after(PATIENCE):
        await stream.send_all((CALLED + bytes(8))[:-missing] if missing > 8 else bytes([1]) * 4)
        await stream.aclose()
        end = await CallPump(two, "service", CALL).run(-1, -1, -1)
    assert (end.kind, end.is_breach) == ("lost", False)


async def test_data_without_its_end_ends_with_its_channel(pairs: Pairs) -> None:
    one, two = await pairs.channels(17, 17)
    stdout = plumb("pipes")
    stream = VchanStream(two)
    ends: list[CallEnd] = []

    async def run() -> None:
        ends.append(await CallPump(one, "caller", CALL).run(-1, stdout[1], -1))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await receive_exactly(stream, len(CALLED))
            whole = opened(SERVICE, Frame(frames.STDOUT, b"all but the end"))
            await stream.send_all(whole[:-4])
            await stream.aclose()
        assert (ends[0].kind, ends[0].is_breach) == ("lost", False)
        os.set_blocking(stdout[0], False)
        assert await read_all(stdout[0]) == b"all but the"
    os.close(stdout[0])


async def test_a_flood_of_signals_is_no_breach_and_told_in_part(pairs: Pairs) -> None:
    """Any user of the other VM may cause one, and its agent sends each."""
    one, two = await pairs.channels(17, 17)
    stream = VchanStream(one)
    told: list[Event] = []
    has_last = trio.Event()

    def hear(event: Event) -> None:
        told.append(event)
        if event == Event(EventKind.SIGNAL, frames.SIGNAL_MAX):
            has_last.set()

    flood = [number(frames.SIGNAL, 1 + each % 63) for each in range(1000)]
    begun = time.monotonic()
    with trio.fail_after(PATIENCE):
        await stream.send_all(opened(CALLER, *flood, number(frames.SIGNAL, frames.SIGNAL_MAX)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CallPump(two, "service", CALL, hear).run, -1, -1, -1)
            await has_last.wait()
            seconds = 2 + int(time.monotonic() - begun)
            assert EventKind.CALLER_GONE not in {event.kind for event in told}
            assert sum(event.kind is EventKind.SIGNAL for event in told) <= 100 * seconds
            nursery.cancel_scope.cancel()


async def test_of_signals_one_by_one_a_bounded_number_is_told_in_a_second(pairs: Pairs) -> None:
    one, two = await pairs.channels(17, 17)
    stream = VchanStream(one)
    send_told, receive_told = trio.open_memory_channel[int](1)

    def hear(event: Event) -> None:
        if event.kind is EventKind.SIGNAL:
            send_told.send_nowait(event.number)

    # The first and the last of more than twice what a second may have are a second apart.
    count = 2 * 100 + 1
    with trio.fail_after(PATIENCE):
        await stream.send_all(opened(CALLER))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CallPump(two, "service", CALL, hear).run, -1, -1, -1)
            begun = time.monotonic()
            for each in range(count):
                wanted = 1 + each % frames.SIGNAL_MAX
                await stream.send_all(raw(CALLER, number(frames.SIGNAL, wanted)))
                assert await receive_told.receive() == wanted
            assert time.monotonic() - begun >= 1
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("streams", [0, 1])
async def test_a_caller_that_is_gone_before_the_service_has_begun_ends_it(
    pairs: Pairs, streams: int
) -> None:
    """It has said all that a call takes, and then closed its channel: nothing more of it comes."""
    one, two = await pairs.channels(17, 17)
    async with VchanStream(one) as stream:
        said = opened(CALLER, Frame(frames.STDIN_EOF), Frame(frames.ABORT), Frame(frames.END))
        await stream.send_all(said)
    stdin = plumb("socket") if streams else (-1, -1)
    with trio.fail_after(PATIENCE):
        end = await CallPump(two, SERVICE, CALL).run(stdin[1], -1, -1, shutdown=True)
    if streams:
        os.close(stdin[0])
    assert (end.kind, end.reason) == ("aborted", "the other VM's agent closed the channel")
