"""fair: the cost of a call of one VM while another VM floods the same service.

The service is one event loop with a channel to each of the two. The measured VM makes a call each
millisecond, from the service's own processor, so that it waits only for the service. The other VM
has a processor to itself and floods in one way after the other, at the rate that its quota allows;
or without any bound, reconnecting whenever it is disconnected.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from pedos_protocol.connection import PENDING_MAX, VERSIONS, Connection
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.events import Closed, Hello, NeedData, Notice, Request
from pedos_vchan import shm
from pedos_vchan._native import lib
from pedos_vchan.peer import Peer
from pedos_vchan.quota import BYTES_PER_FRAME, FRAMES_PER_SECOND, NO_LIMIT
from pedos_vchan.stream import VchanStream

from .processes import cores
from .row import ROUNDS, Row
from .two_processes import PAYLOAD, Child, fork, rendezvous_folder

SERVICE, CALLER, FLOODER = 0, 1, 2  # domains
CALLS = 600
PAUSE = 0.001  # s between two calls of the measured VM
WAIT = 0.002  # s that the handler of "wait" waits
COME_AGAIN = 1.0  # s until a disconnected VM may connect again
TICK = 0.01  # s between two batches of a VM that keeps to its quota
LARGE = 60_000  # bytes of a large frame
RATE = 0.9  # of what the quota allows

#: Wake-ups without data each second: just below what ends a channel.
EVENTS_PER_SECOND = 900


async def _echo(_peer: Peer, params: dict[str, object]) -> dict[str, object]:
    return params


async def _wait(_peer: Peer, _params: dict[str, object]) -> None:
    await trio.sleep(WAIT)


async def _hear(_peer: Peer, _params: dict[str, object]) -> None:
    pass


HANDLERS = {"echo": _echo, "wait": _wait, "hear": _hear}


async def _serve(folder: str, rate: float, ready: Callable[[], None]) -> None:
    async def serve_caller() -> None:
        stream = VchanStream(await listener.accept())
        peer = Peer(stream, program="service", handlers=HANDLERS, frames_per_second=NO_LIMIT)
        await peer.run()
        nursery.cancel_scope.cancel()

    async def serve_flooder() -> None:
        while True:
            other = await shm.listen(folder, SERVICE, FLOODER, shm.CONTROL_PORT)
            stream = VchanStream(await other.accept())
            try:
                await Peer(
                    stream, program="service", handlers=HANDLERS, frames_per_second=rate
                ).run()
            except (RemoteProtocolError, trio.BrokenResourceError):
                await trio.sleep(COME_AGAIN)

    listener = await shm.listen(folder, SERVICE, CALLER, shm.CONTROL_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_caller)
        nursery.start_soon(serve_flooder)
        ready()


async def _time_calls(folder: str) -> tuple[float, float]:
    """Median and 99th percentile of a call, in seconds."""
    stream = VchanStream(await shm.connect(folder, CALLER, SERVICE, shm.CONTROL_PORT))
    peer = Peer(stream, program="caller", handlers={}, frames_per_second=NO_LIMIT)
    took = []
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        for number in range(-CALLS // 10, CALLS):
            await trio.sleep(PAUSE)
            before = time.perf_counter()
            await peer.call("echo", {"data": PAYLOAD}, timeout=10)
            if number >= 0:
                took.append(time.perf_counter() - before)
        nursery.cancel_scope.cancel()
    took.sort()
    return statistics.median(took), took[len(took) * 99 // 100]


How = Callable[["_Flood"], Awaitable[None]]


class _Flood:
    """The VM that floods: sends anything, and reads the answers."""

    def __init__(self, stream: VchanStream, others: set[int]) -> None:
        self.stream = stream
        self.others = others  # eventfds of no channel
        self.connection = Connection()
        self.slots = trio.Semaphore(PENDING_MAX)
        self._last_id = 0

    async def start(self) -> None:
        await self.stream.send_all(self.connection.send(Hello(VERSIONS, "flooder")))

    async def read(self) -> None:
        while True:
            event = self.connection.next_event()
            if isinstance(event, NeedData):
                self.connection.receive_data(await self.stream.receive_some())
            elif isinstance(event, Closed):
                raise trio.BrokenResourceError
            elif not isinstance(event, Hello):
                self.slots.release()

    async def request(self, method: str) -> bytes:
        await self.slots.acquire()
        self._last_id += 1
        return self.connection.send(
            Request(self._last_id, method, {"data": PAYLOAD}, deadline_ms=10_000)
        )

    def notice(self, size: int) -> bytes:
        return self.connection.send(Notice("hear", {"data": "x" * size}))


async def _in_batches(per_second: float, one: Callable[[], Awaitable[object]]) -> None:
    began, done = trio.current_time(), 0
    while True:
        await trio.sleep(TICK)
        while done < (trio.current_time() - began) * per_second:
            await one()
            done += 1


async def _no_flood(_flood: _Flood) -> None:
    await trio.sleep_forever()


async def _notices(flood: _Flood) -> None:
    frame = flood.notice(40)
    await _in_batches(RATE * FRAMES_PER_SECOND, lambda: flood.stream.send_all(frame))


async def _requests(flood: _Flood, method: str = "echo") -> None:
    async def one() -> None:
        await flood.stream.send_all(await flood.request(method))

    await _in_batches(RATE * FRAMES_PER_SECOND / 1.3, one)  # their bytes count as well


async def _waiting_handlers(flood: _Flood) -> None:
    await _requests(flood, "wait")


async def _large_frames(flood: _Flood) -> None:
    frame = flood.notice(LARGE)
    per_second = RATE * FRAMES_PER_SECOND / (LARGE / BYTES_PER_FRAME + 20)
    await _in_batches(per_second, lambda: flood.stream.send_all(frame))


async def _costly_frames(flood: _Flood) -> None:
    """As many values in a frame as possible, which cost the reader most."""
    lists: list[Any] = [[[]] * 990 for _ in range(6)]
    frame = flood.connection.send(Notice("hear", {"data": lists, "text": "x" * (LARGE - 7000)}))
    per_second = RATE * FRAMES_PER_SECOND / (len(frame) / BYTES_PER_FRAME + 20)
    await _in_batches(per_second, lambda: flood.stream.send_all(frame))


async def _half_frames(flood: _Flood) -> None:
    frame, at = flood.notice(LARGE), 0

    async def one() -> None:
        nonlocal at
        await flood.stream.send_all(frame[at : at + 7])
        at = (at + 7) % len(frame) if at + 7 < len(frame) else 0

    await _in_batches(RATE * FRAMES_PER_SECOND, one)


async def _events(flood: _Flood) -> None:
    own = lib.pv_channel_event_fd(flood.stream._channel.native())
    (notify,) = _eventfds() - {own, *flood.others}

    async def one() -> None:
        os.eventfd_write(notify, 1)

    await _in_batches(EVENTS_PER_SECOND, one)


async def _beyond(flood: _Flood) -> None:
    frames = flood.notice(40) * 100
    while True:
        await flood.stream.send_all(frames)


async def _calls_beyond(flood: _Flood) -> None:
    while True:
        await flood.stream.send_all(b"".join([await flood.request("echo") for _ in range(20)]))


async def _large_beyond(flood: _Flood) -> None:
    frame = flood.notice(LARGE)
    while True:
        await flood.stream.send_all(frame)


def _eventfds() -> set[int]:
    fds = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's one is closed by now
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]":
                fds.add(int(name))
    return fds


async def _flood(folder: str, how: How) -> None:
    while True:
        others = _eventfds()
        try:
            channel = await shm.connect(folder, FLOODER, SERVICE, shm.CONTROL_PORT)
        except OSError:
            await trio.sleep(0.01)  # it may not connect yet
            continue
        flood = _Flood(VchanStream(channel), others)
        try:
            async with trio.open_nursery() as nursery:
                await flood.start()
                nursery.start_soon(flood.read)
                nursery.start_soon(how, flood)
        except* trio.BrokenResourceError:
            flood.stream.close()


FLOODS: dict[str, How] = {
    "notices": _notices,
    "requests": _requests,
    "handlers that wait": _waiting_handlers,
    "large frames": _large_frames,
    "frames of very many values": _costly_frames,
    "pieces of frames": _half_frames,
    "events": _events,
    "notices beyond the quota": _beyond,
    "large frames beyond the quota": _large_beyond,
    "notices without a quota": _beyond,
    "calls without a quota": _calls_beyond,
}

#: Floods that nothing limits except that each peer has its turn.
UNLIMITED = ("notices without a quota", "calls without a quota")


def _once(name: str) -> tuple[float, float]:
    how = FLOODS.get(name, _no_flood)
    rate = NO_LIMIT if name in UNLIMITED else FRAMES_PER_SECOND
    own, theirs = cores()

    def serve(ready: Callable[[], None]) -> None:
        os.sched_setaffinity(0, {own})
        trio.run(_serve, folder, rate, ready, strict_exception_groups=True)

    def flood(ready: Callable[[], None]) -> None:
        os.sched_setaffinity(0, {theirs})
        ready()
        trio.run(_flood, folder, how, strict_exception_groups=True)

    def call(ready: Callable[[], None]) -> tuple[float, float]:
        os.sched_setaffinity(0, {own})
        ready()
        return trio.run(_time_calls, folder, strict_exception_groups=True)

    with rendezvous_folder() as folder:
        service = fork(serve)
        flooder = fork(flood)
        try:
            median, late = Child(call).result()
            return median, late
        finally:
            os.kill(flooder, signal.SIGKILL)
            os.waitpid(flooder, 0)
            os.waitpid(service, 0)


def measure(rounds: int = ROUNDS) -> list[Row]:
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ("", *FLOODS)}
    for _ in range(rounds):
        for name, values in measured.items():
            values.append(_once(name))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in measured.items()
    }
    return [
        Row(
            "fair",
            f"{what} of a call while a VM sends {name}",
            medians[name][column] / medians[""][column],
            # The hundredth call may come right behind a frame of 64 KiB, whose reading is one step
            # of some 2 ms; so the tail is only shown, and the gate is the median.
            limit,
            "x",
            {"alone_us": medians[""][column] * 1e6, "flooded_us": medians[name][column] * 1e6},
        )
        for name in FLOODS
        for column, (what, limit) in enumerate((("median", 2), ("p99", None)))
    ]
