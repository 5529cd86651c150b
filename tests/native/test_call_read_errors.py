"""A stream that cannot be read to its end: half of the data never looks like all of it."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

import trio
from pedos_vchan.call_pump import CallEnd, CallPump

from tests.patience import PATIENCE

from .calling_pair import CALL, plumb, read

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
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            broken.close()
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
