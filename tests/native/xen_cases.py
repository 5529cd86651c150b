"""Cases of the Xen attachment over the stand-in, each in a process of its own (see test_xen.py).

    python -m tests.native.xen_cases CASE FOLDER       FOLDER: what xen_libraries.build made

The stand-in keeps both domains in one process; which one a call is made for is set before it.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0 import __main__ as dom0
from pedos_vchan import pump as pumping
from pedos_vchan import xen
from pedos_vchan.stream import VchanStream

from . import xen_libraries

SERVER, CLIENT, PORT = 7, 3, 1
# A domain's death must be seen within a second; the rest is for a machine that is busy.
LIMIT = 5
GUARD_SECONDS = 0.5  # the guard's thread looks every 0.2
SPIN_DOMAIN = 0.002  # seconds; PV_SPIN_DOMAIN_NS in channel.h

PRESENCES_KEPT = 16  # xen_presence.c

standin = xen_libraries.load(Path(sys.argv[2]))


async def in_domain(call: Any, *arguments: Any) -> Any:
    """In the place of xen's thread: makes the call for the domain that it names first."""
    await trio.lowlevel.checkpoint()
    if isinstance(arguments[0], int):
        standin.standin_enter(arguments[0])
    return call(*arguments)


xen._in_thread = in_domain


async def channels(
    left: int = 16, right: int = 16, server: int = SERVER, client: int = CLIENT
) -> tuple[xen.Channel, xen.Channel]:
    listener = await xen.listen(server, client, PORT, order_left=left, order_right=right)
    joined = await xen.connect(client, server, PORT)
    return await listener.accept(), joined


async def streams(
    left: int = 16, right: int = 16, server: int = SERVER, client: int = CLIENT
) -> tuple[VchanStream, VchanStream]:
    one, two = await channels(left, right, server, client)
    return VchanStream(one), VchanStream(two)


async def notices(victim: int, server: int, client: int) -> None:
    """The end of the domain `victim` ends the other one's stream, after what had come."""
    served, joined = await streams(server=server, client=client)
    dead, alive = (served, joined) if victim == server else (joined, served)
    await dead.send_all(b"last words")
    await trio.sleep(GUARD_SECONDS)  # long enough for a guest to have seen its peer
    start = trio.current_time()
    standin.standin_kill(victim)
    assert await alive.receive_some() == b"last words"
    with pytest.raises(trio.BrokenResourceError, match="gone without closing"):
        await alive.receive_some()
    assert trio.current_time() - start < LIMIT
    alive.close()
    dead.close()


async def shortest_look() -> float:
    """Seconds that a turn takes to which nobody answers: the first one of the only channel, the
    best of a few."""
    looks = []
    for _ in range(5):
        with await xen.listen(SERVER, 0, PORT):
            client = await xen.connect(0, SERVER, PORT)
            start = time.perf_counter()
            assert VchanStream(client).turn(b"hello") == (5, None)
            looks.append(time.perf_counter() - start)
            client.close()
    return min(looks)


async def two_way_stream() -> None:
    async def clogged() -> tuple[VchanStream, VchanStream]:
        one, two = await streams(12, 12)
        await one.send_all(bytes(4096))
        await two.send_all(bytes(4096))
        return one, two

    await trio.testing.check_two_way_stream(streams, clogged)


async def nobody_there() -> None:
    with pytest.raises(FileNotFoundError, match="no server is announced"):
        await xen.connect(CLIENT, SERVER, PORT)


async def a_client_waits_for_its_server() -> None:
    async def come() -> None:
        standin.standin_enter(CLIENT)
        client = await xen.connect_when_there(CLIENT, SERVER, PORT)
        await VchanStream(client).send_all(b"here")
        client.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked()
        stream = VchanStream(await (await xen.listen(SERVER, CLIENT, PORT)).accept())
    assert await stream.receive_some() == b"here"
    assert await stream.receive_some() == b""
    stream.close()


async def a_dead_servers_announcement_is_passed_over() -> None:
    standin.standin_enter(SERVER)
    path = f"/local/domain/{SERVER}/data/vchan/{CLIENT}/{PORT}"
    with xen.Store() as store:
        store.write(f"{path}/ring-ref", "8")
        store.write(f"{path}/event-channel", "1")
    with pytest.raises(FileNotFoundError):  # not ours to read: as if it were not there
        await xen.connect(CLIENT, SERVER, PORT)
    for node in ("ring-ref", "event-channel"):
        standin.standin_permit(f"{path}/{node}".encode(), CLIENT)
    with pytest.raises(ConnectionRefusedError, match="cannot be joined"):
        await xen.connect(CLIENT, SERVER, PORT)
    server, client = await channels()
    server.close()
    client.close()


async def a_port_is_free_once_its_client_came() -> None:
    first = await channels()
    second = await channels()
    for end in first:
        end.close()
    third = await xen.listen(SERVER, CLIENT, PORT)
    for end in second:  # closing these leaves the third's announcement alone
        end.close()
    client = await xen.connect(CLIENT, SERVER, PORT)
    server = await third.accept()
    client.close()
    server.close()


async def a_guest_learns_of_its_peers_end_from_xenstore() -> None:
    for victim in (SERVER, CLIENT):
        await notices(victim, SERVER, CLIENT)


async def dom0_learns_of_its_peers_end_from_the_hypervisor() -> None:
    await notices(SERVER, SERVER, 0)
    await notices(SERVER, 0, SERVER)


async def a_pump_notices_it_too() -> None:
    server, client = await channels()
    never, kept = os.pipe()
    results = []

    async def run() -> None:
        results.append(await pumping.pump(client, never, kept))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(GUARD_SECONDS)
        standin.standin_kill(SERVER)
    assert results[0].why is pumping.Why.PEER_DIED
    server.close()
    os.close(never)
    os.close(kept)


async def grants_that_are_used_up_are_an_error_and_no_crash() -> None:
    listeners = []
    with pytest.raises(OSError, match="grants of this domain are used up") as raised:
        for port in range(100):
            listeners.append(await xen.listen(SERVER, CLIENT, port, order_left=20, order_right=20))
    assert raised.value.errno == errno.ENOSPC
    assert listeners
    for listener in listeners:
        listener.close()
    server, client = await channels(20, 20)
    server.close()
    client.close()


async def a_channel_for_which_no_descriptor_is_left_leaves_nothing() -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    listener = await xen.listen(SERVER, CLIENT, PORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pedos_vchan.xen.socket.socketpair", none_left)
        with pytest.raises(OSError, match="Too many open files"):
            await xen.connect(CLIENT, SERVER, PORT)
        with pytest.raises(OSError, match="Too many open files"):
            await listener.accept()


async def the_service_looks_for_an_answer_no_longer_than_others_can_wait() -> None:
    assert await shortest_look() >= SPIN_DOMAIN
    options = "--driver=xen --socket=s --dom0-agent=a --state=s --policy=p --vms-dir=v"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio, "run", lambda *_, **__: None)
        assert dom0.main(options.split()) == 0
    assert await shortest_look() < SPIN_DOMAIN / 2


async def a_listener_that_is_closed_leaves_nothing() -> None:
    listener = await xen.listen(SERVER, CLIENT, PORT)

    async def close() -> None:
        await trio.testing.wait_all_tasks_blocked()
        listener.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
    with pytest.raises(FileNotFoundError):
        await xen.connect(CLIENT, SERVER, PORT)


async def impossible_numbers() -> None:
    with pytest.raises(ValueError, match="to itself"):
        await xen.listen(SERVER, SERVER, PORT)
    with pytest.raises(ValueError, match="to itself"):
        await xen.connect(SERVER, SERVER, PORT)
    with pytest.raises(ValueError, match="not possible"):
        await xen.listen(SERVER, CLIENT, PORT, order_left=10, order_right=20)
    with pytest.raises(ValueError, match="not between"):
        await xen.connect(CLIENT, 0x7FF0, PORT)


async def what_dead_domains_were_shown_is_taken_away() -> None:
    alive = await channels(client=CLIENT)
    for client in range(CLIENT + 10, CLIENT + 10 + 2 * PRESENCES_KEPT):
        for channel in await channels(client=client):
            channel.close()
        standin.standin_kill(client)
    standin.standin_enter(SERVER)
    with xen.Store() as store:
        shown = store.list(f"/local/domain/{SERVER}/data/vchan")
    assert str(CLIENT) in shown
    assert len(shown) <= PRESENCES_KEPT + 2
    for channel in alive:
        channel.close()


async def the_store() -> None:
    standin.standin_enter(SERVER)
    with xen.Store() as store:
        assert xen.own_domain() == SERVER
        assert store.read("/a/b") is None
        assert store.list("/a") == []
        store.watch("/a")
        assert await store.changed() == {"/a"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.changed)
            await trio.testing.wait_all_tasks_blocked()
            with xen.Store() as other:
                other.write("/a/b", "text")
                other.write("/a/c", "")
        assert (store.read("/a/b"), store.read("/a/c")) == ("text", "")
        assert sorted(store.list("/a")) == ["b", "c"]
        store.remove("/a")
        assert store.list("/a") == []
        await store.changed()
        store.unwatch("/a")

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked()
            store.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            with pytest.raises(trio.ClosedResourceError):
                await store.changed()


CASES = {
    case.__name__: case
    for case in (
        two_way_stream,
        nobody_there,
        a_client_waits_for_its_server,
        a_dead_servers_announcement_is_passed_over,
        a_port_is_free_once_its_client_came,
        a_guest_learns_of_its_peers_end_from_xenstore,
        dom0_learns_of_its_peers_end_from_the_hypervisor,
        a_pump_notices_it_too,
        grants_that_are_used_up_are_an_error_and_no_crash,
        a_channel_for_which_no_descriptor_is_left_leaves_nothing,
        the_service_looks_for_an_answer_no_longer_than_others_can_wait,
        a_listener_that_is_closed_leaves_nothing,
        impossible_numbers,
        what_dead_domains_were_shown_is_taken_away,
        the_store,
    )
}


async def main() -> None:
    with trio.fail_after(60):
        await CASES[sys.argv[1]]()
    left = standin.standin_in_use()
    assert left == 0, f"{left} grants, ports and nodes were not given back"


if __name__ == "__main__":
    trio.run(main)
