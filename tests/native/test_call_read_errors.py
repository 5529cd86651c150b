"""A stream that cannot be read or written to its end: half of the data never looks like all."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

import trio
from pedos_vchan.call_pump import CallEnd, CallPump, Event, EventKind

from tests.patience import PATIENCE

from .calling_pair import CALL, plumb, read, write

if TYPE_CHECKING:
    from .conftest import Pairs

ORDER = 17


class Streams(NamedTuple):
    """The standard input and output of one side of a call; -1 where it has none."""

    stdin: int
    stdout: int


def connected() -> tuple[socket.socket, int]:
    """A connection that its first end can reset, as those over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0].detach()


def reset(broken: socket.socket) -> None:
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broken.close()


async def ends_when_reset(
    pairs: Pairs, caller: Streams, service: Streams, broken: socket.socket, seen: int
) -> tuple[CallEnd, CallEnd]:
    """How both sides end when the `broken` end of a stream is reset after some data, once that has
    been `seen` at the stream's other end."""
    told: dict[str, CallEnd] = {}

    async def run(side: str, pump: CallPump, streams: Streams) -> None:
        told[side] = await pump.run(*streams, -1)

    os.set_blocking(seen, False)
    with trio.fail_after(PATIENCE):
        one, two = await pairs.channels(ORDER, ORDER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "caller", CallPump(one, "caller", CALL), caller)
            nursery.start_soon(run, "service", CallPump(two, "service", CALL), service)
            broken.sendall(b"half")
            assert await read(seen, 4) == b"half"
            reset(broken)
    os.close(seen)
    return told["caller"], told["service"]


async def test_an_input_that_is_reset_is_a_problem_and_no_end_of_the_input(pairs: Pairs) -> None:
    broken, stdin = connected()
    seen, source = plumb("sockets")
    caller, service = await ends_when_reset(
        pairs, Streams(stdin, -1), Streams(source, -1), broken, seen
    )
    assert (caller.kind, caller.status) == ("problem", 125)
    assert caller.text == "the caller's standard input cannot be read: Connection reset by peer"
    assert service.kind == "aborted"
    assert caller.is_reusable
    assert service.is_reusable


async def test_an_output_that_is_reset_is_a_problem_on_both_sides(pairs: Pairs) -> None:
    """As that of a service behind a link to /dev/tcp."""
    broken, stdout = connected()
    seen, sink = plumb("sockets")
    both = await ends_when_reset(pairs, Streams(-1, sink), Streams(-1, stdout), broken, seen)
    for each in both:
        assert (each.kind, each.status) == ("problem", 125)
        assert each.text == (
            "the service's standard output cannot be read: Connection reset by peer"
        )
        assert each.is_reusable


async def test_an_output_that_is_reset_while_it_is_written_is_a_problem(pairs: Pairs) -> None:
    broken, stdout = connected()
    told: dict[str, CallEnd] = {}

    async def run(side: str, pump: CallPump, streams: Streams) -> None:
        told[side] = await pump.run(*streams, -1)

    source, service_stdout = plumb("sockets")[::-1]
    os.set_blocking(source, False)
    with trio.fail_after(PATIENCE):
        one, two = await pairs.channels(ORDER, ORDER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "caller", CallPump(one, "caller", CALL), Streams(-1, stdout))
            nursery.start_soon(
                run, "service", CallPump(two, "service", CALL), Streams(-1, service_stdout)
            )
            await write(source, b"x" * 100_000)
            assert await trio.to_thread.run_sync(broken.recv, 1) == b"x"
            reset(broken)
    os.close(source)
    assert (told["caller"].kind, told["caller"].status) == ("problem", 125)
    said = "the caller's standard output cannot be written: Connection reset by peer"
    assert told["caller"].text == said
    assert told["service"].kind == "aborted"
    assert all(each.is_reusable for each in told.values())


async def test_output_that_is_lost_after_the_service_has_ended_is_a_problem(pairs: Pairs) -> None:
    broken, stdout = connected()
    with socket.socket(fileno=os.dup(stdout)) as full, contextlib.suppress(BlockingIOError):
        while True:
            full.send(b"x" * 65536, socket.MSG_DONTWAIT)
    told: dict[str, CallEnd] = {}
    exited = trio.Event()

    def hear(event: Event) -> None:
        if event.kind is EventKind.EXITED:
            exited.set()

    async def run(side: str, pump: CallPump, streams: Streams) -> None:
        told[side] = await pump.run(*streams, -1)

    source, service_stdout = plumb("sockets")[::-1]
    os.write(source, b"lost")
    os.close(source)
    with trio.fail_after(PATIENCE):
        one, two = await pairs.channels(ORDER, ORDER)
        async with trio.open_nursery() as nursery:
            calling, serving = CallPump(one, "caller", CALL, hear), CallPump(two, "service", CALL)
            nursery.start_soon(run, "caller", calling, Streams(-1, stdout))
            nursery.start_soon(run, "service", serving, Streams(-1, service_stdout))
            serving.exit("exited", 0)
            await exited.wait()
            reset(broken)
    assert (told["caller"].kind, told["caller"].status) == ("problem", 125)
    assert told["service"].kind == "exited"
