"""Our end of the bench's channels; runs in a domain.  What each verb does stands at its function.

bench-peer churn|death|echo|pingpong|soak|verify server|client PEER PORT [NUMBERS...]
bench-peer stream server|client PEER [NUMBER]
bench-peer exhaust server PEER PORT
bench-peer itself server|client PORT

Several of these with " + " between them run at the same time, in one process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import remote
import trio
from pedos_vchan import xen
from pedos_vchan.pump import pump
from pedos_vchan.stream import VchanStream

MESSAGE = 64
SERVERS_MAX = 200  # gntalloc lets a domain share 1,024 pages: those of 31 control channels
PERIOD = 65521  # of the soak's pattern: prime, so that no ring's size divides it


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def opened(role: str, peer: int, port: int, order: int = xen.CONTROL_ORDER) -> xen.Channel:
    own = xen.own_domain()
    if role == "client":
        return await xen.connect_when_there(own, peer, port)
    with await xen.listen(own, peer, port, order_left=order, order_right=order) as listener:
        return await listener.accept()


async def converse(stream: VchanStream, out: bytes) -> bytes:
    """Says something and returns the answer, as `Peer` does: a turn both writes and reads."""
    written, data = stream.conversation.turn(out)
    if written < len(out):
        raise RuntimeError("a message does not fit into an empty ring")
    got = b""
    waited = False
    while True:
        if data == b"":
            raise RuntimeError("the other side has closed")
        got += data or b""
        if len(got) >= MESSAGE:
            break
        if data is None:
            await stream.conversation.wait()
            waited = True
        _, data = stream.conversation.turn(b"")
    if not waited:
        await trio.lowlevel.checkpoint()
    return got


async def pingpong(role: str, peer: int, port: int, trips: int, size: int, order: int = 16) -> None:
    """The same as bench-pingpong: round trips through our stream, then size bytes by our pump."""
    channel = await opened(role, peer, port, order)
    stream = VchanStream(channel)
    message = bytes(MESSAGE)
    start = time.monotonic()
    if role == "server":
        answer = b""
        for _ in range(trips):
            answer = await converse(stream, answer)
        if trips:
            await stream.send_all(answer)
    else:
        # A fork (warm.py) copies each page that it first writes to; that is not what is measured.
        untimed = trips // 3
        for trip in range(trips):
            if trip == untimed:
                start = time.monotonic()
            await converse(stream, message)
    if role == "client" and trips:
        say(round_trip_us=round((time.monotonic() - start) / (trips - untimed) * 1e6, 1))
    never, kept = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, never)
        stack.callback(os.close, kept)
        if role == "server":
            sink = os.open("/dev/null", os.O_WRONLY)
            stack.callback(os.close, sink)
            first = await stream.receive_some(1) if size else b""
            start = time.monotonic()
            result = await pump(channel, never, sink)
            seconds = time.monotonic() - start
            if size:
                say(bulk_mb_s=round(size / seconds / 1e6, 2))
            assert result.bytes_to_fd + len(first) == size, result
        else:
            with tempfile.TemporaryFile(dir="/dev/shm") as source:
                source.truncate(size)
                result = await pump(channel, source.fileno(), kept)
                assert result.bytes_to_ring == size, result


async def soak(role: str, peer: int, port: int, seconds: int, seed: int = 1) -> None:
    """Random pieces both ways at once, every byte checked. The longest wait is reported.

    Our stream has no time-out that would hide a missed wake-up: such a run would never end.
    """
    stream = VchanStream(await opened(role, peer, port, 14))
    # What stands at a place of a direction's stream follows from the place alone.
    block = random.Random(seed).randbytes(PERIOD) * 4
    chance = random.Random(f"{seed} {role}")
    sent = received = 0
    longest = 0.0
    over = trio.Event()

    async def send() -> None:
        nonlocal sent
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            size = chance.choice((1, 7, 64, 1000, 5000, chance.randint(1, 1 << 17)))
            at = sent % PERIOD
            try:
                await stream.send_all(block[at : at + size])
            except trio.BrokenResourceError:
                if role == "client":
                    raise
                break  # the client, which may have begun before, has sent all and closed
            sent += size
        over.set()

    async def receive() -> None:
        nonlocal received, longest
        while True:
            before = time.monotonic()
            data = await stream.receive_some(chance.randint(1, 1 << 17))
            if not data:
                return
            longest = max(longest, time.monotonic() - before)
            at = received % PERIOD
            assert data == block[at : at + len(data)], f"wrong bytes at {received}"
            received += len(data)

    # The client closes when it has sent all, so that the server's reader ends.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        if role == "server":
            await receive()
            await over.wait()
        else:
            nursery.start_soon(receive)
            await over.wait()
            nursery.cancel_scope.cancel()
    await stream.aclose()
    say(sent=sent, received=received, longest_wait_s=round(longest, 3))


async def churn(role: str, peer: int, port: int, rounds: int) -> None:
    """Many short channels one after the other on one port; each is closed with bytes in flight."""
    chance = random.Random(port)
    total = 0
    for _ in range(rounds):
        server_closes, size = chance.random() < 0.5, chance.randint(0, 2000)
        stream = VchanStream(await opened(role, peer, port))
        if server_closes == (role == "server"):
            await stream.send_all(bytes(size))
        else:
            got = 0
            while data := await stream.receive_some():
                got += len(data)
            assert got == size, f"{size - got} of {size} bytes were lost at the close"
            total += got
        await stream.aclose()
    say(channels=rounds, received=total)


async def echo(role: str, peer: int, port: int) -> None:
    """Gives back what comes, until the other side closes or dies."""
    stream = VchanStream(await opened(role, peer, port))
    say(open=True)
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
        say(ended="closed")
    except trio.BrokenResourceError as error:
        say(ended=str(error))
    await stream.aclose()


async def verify(role: str, peer: int, port: int, size: int) -> None:
    """Sends so many bytes to something that gives them back, and checks them."""
    data = random.Random(size).randbytes(size)
    got = b""
    async with (
        VchanStream(await opened(role, peer, port)) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.send_all, data)
        while len(got) < size and (part := await stream.receive_some()):
            got += part
    assert got == data, f"{len(got)} of {size} bytes, or wrong ones"
    say(verified=size)


async def death(role: str, peer: int, port: int, pumped: int = 0) -> None:
    """Waits for the other side's end, in a stream or in a pump, and says when it came (epoch).

    That both ends are there shows as a file."""
    channel = await opened(role, peer, port)
    Path(f"/run/bench-open-{port}").touch()
    how = "closed"
    if pumped:
        never, kept = os.pipe()
        how = (await pump(channel, never, kept)).why.value
    else:
        try:
            while await VchanStream(channel).receive_some():
                pass
        except trio.BrokenResourceError as error:
            how = str(error)
    say(port=port, ended=how, at=round(time.time(), 3))


async def stream(role: str, peer: int, far_serves: int = 1) -> None:
    """trio's check of a two-way stream; the server's side only does what it is told."""
    if role == "server":
        await remote.serve(opened, peer)
    else:
        made = await remote.check(opened, peer, "server" if far_serves else "client")
        say(streams=made)


async def exhaust(_: str, peer: int, port: int) -> None:
    """Makes servers until there is no memory left that could be shared, and says what came of it;
    then gives all of that back and makes one more."""
    own, servers = xen.own_domain(), 0
    with contextlib.ExitStack() as stack:
        try:
            while servers < SERVERS_MAX:
                stack.enter_context(await xen.listen(own, peer, port + servers))
                servers += 1
        except OSError as error:
            say(servers=servers, error=errno.errorcode[error.errno or 0], why=str(error))
    with await xen.listen(own, peer, port):
        say(again=True)


async def itself(role: str, port: int) -> None:
    """Tries a channel from this domain to itself."""
    own = xen.own_domain()
    try:
        await opened(role, own, port)
    except ValueError as error:
        say(refused=str(error))


VERBS = {
    "churn": churn,
    "death": death,
    "echo": echo,
    "exhaust": exhaust,
    "itself": itself,
    "pingpong": pingpong,
    "soak": soak,
    "stream": stream,
    "verify": verify,
}


async def all_of(commands: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        for command in commands:
            verb, role, *numbers = command.split()
            nursery.start_soon(VERBS[verb], role, *map(int, numbers))


def main() -> None:
    trio.run(all_of, " ".join(sys.argv[1:]).split(" + "))
