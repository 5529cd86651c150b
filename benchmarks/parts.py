"""Where the time of a call goes with 32 in flight: python -m benchmarks.parts

The processor time of each part alone, the least of many rounds, so that other load counts little:
the state machines with their events and frames, the ring, trio's switch from task to task. The rest
of a run of T1 is `Peer` and trio's loop. Not a gate: it shows where to look when one is missed.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import trio
from pedos_protocol.connection import VERSIONS, Connection
from pedos_protocol.events import Answer, Hello, Request, know_methods
from pedos_vchan import shm
from pedos_vchan.stream import VchanStream

from .processes import pinned, processor_seconds
from .throughput import IN_FLIGHT
from .two_processes import PAYLOAD, connected, drive, rendezvous_folder, served

ROUNDS = 40
BATCHES = 20  # of IN_FLIGHT calls, in a round
CALLS = 16_000


def _least(job: Callable[[], object], per: int) -> float:
    """Microseconds of processor time for one of the `per` operations of a job."""
    best = float("inf")
    for _ in range(ROUNDS):
        before = time.thread_time()
        job()
        best = min(best, time.thread_time() - before)
    return best / per * 1e6


def connection() -> tuple[float, float]:
    """One call through both state machines, frames included: the client's part, the server's."""
    know_methods(["echo"])  # as the server of T1 does
    client, server = Connection(), Connection()
    for one, other in ((client, server), (server, client)):
        list(other.receive_data(one.send(Hello(VERSIONS, "x"))))
    times = [float("inf")] * 2
    for _ in range(ROUNDS * BATCHES):
        start = time.thread_time()
        out = b"".join(
            [client.send(Request(i, "echo", {"data": PAYLOAD}, 10_000)) for i in range(IN_FLIGHT)]
        )
        asked = time.thread_time()
        answers = [
            server.send(Answer(event.id, event.params))
            for event in server.receive_data(out)
            if isinstance(event, Request)
        ]
        back = b"".join(answers)
        served_at = time.thread_time()
        for _ in client.receive_data(back):
            pass
        end = time.thread_time()
        times[0] = min(times[0], asked - start + end - served_at)
        times[1] = min(times[1], served_at - asked)
    return times[0] / IN_FLIGHT * 1e6, times[1] / IN_FLIGHT * 1e6


def ring() -> float:
    """A batch of requests and one of answers through a channel, per call; both ends."""

    async def ends(folder: str) -> tuple[VchanStream, VchanStream]:
        listener = await shm.listen(folder, 1, 0, 5)
        taken: list[VchanStream] = []

        async def accept() -> None:
            taken.append(VchanStream(await listener.accept()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            other = VchanStream(await shm.connect(folder, 0, 1, 5))
        return taken[0], other

    with rendezvous_folder() as folder:
        one, other = trio.run(ends, folder)
        batch = bytes(85 * IN_FLIGHT)

        def to_and_fro() -> None:
            for _ in range(BATCHES):
                one.conversation.send_some(batch)
                other.conversation.turn(b"")
                other.conversation.send_some(batch)
                one.conversation.turn(b"")

        return _least(to_and_fro, IN_FLIGHT * BATCHES)


def hand_over() -> float:
    """Waking a task that waits, and running it until it waits again."""

    async def main() -> float:
        tasks: list[trio.lowlevel.Task] = []

        def abort(_: object) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.SUCCEEDED

        async def wait() -> None:
            while True:
                tasks.append(trio.lowlevel.current_task())
                await trio.lowlevel.wait_task_rescheduled(abort)

        best = float("inf")
        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(wait)
            while len(tasks) < IN_FLIGHT:
                await trio.lowlevel.checkpoint()
            for _ in range(ROUNDS * BATCHES):
                before = time.thread_time()
                woken, tasks[:] = tasks[:], []
                for task in woken:
                    trio.lowlevel.reschedule(task)
                while len(tasks) < IN_FLIGHT:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                best = min(best, time.thread_time() - before)
            nursery.cancel_scope.cancel()
        return best / IN_FLIGHT * 1e6

    return trio.run(main)


def whole() -> tuple[float, float, float]:
    """A run of T1: the client's processor time, the server's, and process switches, per call."""
    best = (float("inf"),) * 3
    for _ in range(5):
        with served() as (folder, pid):

            async def run(folder: object = folder, pid: int = pid) -> tuple[float, float, float]:
                async with connected(folder) as peer:  # type: ignore[arg-type]
                    await drive(peer, IN_FLIGHT, CALLS // 4)
                    theirs, mine = processor_seconds(pid), resource.getrusage(resource.RUSAGE_SELF)
                    await drive(peer, IN_FLIGHT, CALLS)
                    now = resource.getrusage(resource.RUSAGE_SELF)
                    calls = CALLS * 1.1 / 1e6  # with drive's own warm-up
                    own = now.ru_utime + now.ru_stime - mine.ru_utime - mine.ru_stime
                    switches = now.ru_nvcsw - mine.ru_nvcsw
                    served_for = processor_seconds(pid) - theirs
                    return own / calls, served_for / calls, switches / calls / 1e6

            best = min(best, trio.run(run))
    return best


def main() -> None:
    with pinned():
        client, server = connection()
        wire = ring()
        switch = hand_over()
        mine, theirs, switches = whole()
    rows = [
        ("client: state machine, events and frames", client),
        ("server: state machine, events and frames", server),
        ("ring and its C calls, both ends, in batches", wire),
        ("client: trio's hand-over to the caller", switch),
        ("client: Peer and trio's loop", mine - client - wire / 2 - switch),
        ("server: Peer and trio's loop", theirs - server - wire / 2),
    ]
    print(f"{'part':52} {'us a call':>9}")
    for name, value in rows:
        print(f"{name:52} {value:9.2f}")
    print(f"{f'all: client {mine:.1f}, server {theirs:.1f}':52} {mine + theirs:9.2f}")
    print(f"{'times that the client slept, a call':52} {switches:9.3f}")


if __name__ == "__main__":
    main()
