"""Cases of the Xen attachment over the stand-in, each in a process of its own (see test_xen.py).

    python -m tests.native.xen_cases FOLDER            FOLDER: what xen_libraries.build made

It reads the name of a case a line, runs that in a fork, and writes a line with the exit status and
what was said, as JSON: a start takes far longer than a case.

The stand-in keeps both domains in one process; which one a call is made for is set before it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import tempfile
import time
import traceback
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
from .closing import close_in_its_thread

SERVER, CLIENT, PORT = 7, 3, 1
# A domain's death must be seen within a second; the rest is for a machine that is busy.
LIMIT = 5
GUARD_SECONDS = 0.5  # the guard's thread looks every 0.2
SPIN_DOMAIN = 0.002  # seconds; PV_POLL_DOMAIN_NS in channel.h

standin = xen_libraries.load(Path(sys.argv[1]))

in_thread = xen._in_thread
xen._in_thread = xen_libraries.in_domain(standin)


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
            assert VchanStream(client).conversation.turn(b"hello") == (5, None)
            looks.append(time.perf_counter() - start)
            client.close()
    return min(looks)


class Heard(logging.Handler):
    """What xen.py has said, to be waited for."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self._more = trio.Event()
        logging.getLogger("pedos_vchan.xen").addHandler(self)
        logging.getLogger("pedos_vchan.xen").setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._more.set()
        self._more = trio.Event()

    async def until(self, words: str) -> None:
        while not any(words in line for line in self.lines):
            await self._more.wait()


async def two_way_stream() -> None:
    async def clogged() -> tuple[VchanStream, VchanStream]:
        one, two = await streams(12, 12)
        await one.send_all(bytes(4096))
        await two.send_all(bytes(4096))
        return one, two

    await trio.testing.check_two_way_stream(streams, clogged)


async def only_announced_data_ports_are_cleared() -> None:
    control, data = await xen.listen(SERVER, CLIENT, PORT), await xen.listen(SERVER, CLIENT, 16)
    used = await xen.listen(SERVER, CLIENT, 17)
    client = await xen.connect(CLIENT, SERVER, 17)
    server = await used.accept()
    xen.clear_data_ports(SERVER)
    with pytest.raises(FileNotFoundError, match="no server is announced"):
        await xen.connect(CLIENT, SERVER, 16)
    joined = await xen.connect(CLIENT, SERVER, PORT)
    served = await control.accept()
    assert VchanStream(client).conversation.turn(b"still") == (5, None)
    for each in (joined, served, server, data):
        each.close()


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


async def a_guest_learns_of_an_end_though_xenstore_failed_meanwhile() -> None:
    """It cannot be opened at first, or has broken since; the peer dies, and then it is back."""
    for breaks_later in (False, True):
        heard = Heard()
        if not breaks_later:
            standin.standin_store_fails(errno.ECONNREFUSED)
        served, joined = await streams()
        if breaks_later:
            await trio.sleep(GUARD_SECONDS)  # long enough for the guard to have opened it
            standin.standin_store_fails(errno.ECONNREFUSED)
        await heard.until("cannot be seen whether other domains live")
        standin.standin_kill(SERVER)
        standin.standin_store_fails(0)
        with pytest.raises(trio.BrokenResourceError, match="gone without closing"):
            await joined.receive_some()
        await heard.until("seen again")
        assert len(heard.lines) == 2
        joined.close()
        served.close()


async def a_listener_that_is_woken_without_end_says_so_and_the_next_one_serves() -> None:
    listener = await xen.listen(SERVER, CLIENT, PORT)
    ended = trio.Event()
    wakes = 0

    async def accept() -> None:
        with pytest.raises(trio.BrokenResourceError, match=f"event flood: domain {CLIENT}"):
            await listener.accept()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        while not ended.is_set():
            os.eventfd_write(listener._event_fd, 1)
            wakes += 1
            await trio.lowlevel.checkpoint()
    assert wakes < 100_000  # it was a thousand within one second of a clock
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with pytest.raises(FileNotFoundError):  # nobody meets a ring that has failed
        await xen.connect(CLIENT, SERVER, PORT)
    server, client = await streams()
    await client.send_all(b"here")
    assert await server.receive_some() == b"here"
    server.close()
    client.close()


async def a_refused_client_tries_again_though_no_node_changes() -> None:
    refusals = 3
    connected = xen.connect

    async def connect(*address: int) -> xen.Channel:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise ConnectionRefusedError
        return await connected(*address)

    listener = await xen.listen(SERVER, CLIENT, PORT)
    standin.standin_enter(CLIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xen, "connect", connect)
        client = await xen.connect_when_there(CLIENT, SERVER, PORT)
    assert refusals == 0
    (await listener.accept()).close()
    client.close()


async def a_listener_whose_accept_is_closed_frees_its_ring_after_the_thread() -> None:
    """The thread takes the announcement away; until then the ring is its own."""
    listener = await xen.listen(SERVER, CLIENT, PORT)
    client = await xen.connect(CLIENT, SERVER, PORT)
    order = []
    native = xen.lib

    class Noted:
        def __getattr__(self, name: str) -> Any:
            function = getattr(native, name)

            def call(*arguments: Any) -> Any:
                if name == "pv_xen_admit":
                    time.sleep(0.05)  # for the thread to be slower than its caller
                result = function(*arguments)
                order.append(name)
                return result

            return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xen, "lib", Noted())
        patch.setattr(xen, "_in_thread", in_thread)
        await close_in_its_thread(listener.accept())
    assert order[-2:] == ["pv_xen_admit", "pv_channel_free"]
    client.close()


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


def nodes_of(domain: int) -> list[str]:
    """What a domain has in xenstore for its peers: their numbers."""
    standin.standin_enter(domain)
    with xen.Store() as store:
        return store.list(f"/local/domain/{domain}/data/vchan")


async def thirty_domains_that_come_and_go_leave_xenstore_as_it_was() -> None:
    """In a domain that stays, whoever served, and whether the channel or the peer ended first."""
    for stays in (0, SERVER):
        alive = await channels(server=CLIENT, client=stays)
        before = nodes_of(stays)
        assert before == ([str(CLIENT)] if stays else []), (
            "dom0 outlives all, and shows itself to none"
        )
        for number, guest in enumerate(range(CLIENT + 10, CLIENT + 40)):
            server, client = (guest, stays) if number % 2 else (stays, guest)
            ends = await channels(server=server, client=client)
            if number % 3:
                standin.standin_kill(guest)
            for channel in ends:
                channel.close()
            standin.standin_kill(guest)
        # A guest is not told of the end of one whose channel was closed before: it looks next time.
        for channel in await channels(server=CLIENT, client=stays):
            channel.close()
        assert nodes_of(stays) == before
        for channel in alive:
            channel.close()
        standin.standin_kill(CLIENT)


async def what_a_peer_that_lives_is_shown_stays() -> None:
    """Other processes of this domain may have channels with it."""
    for channel in await channels():
        channel.close()
    assert nodes_of(SERVER) == [str(CLIENT)]
    assert nodes_of(CLIENT) == [str(SERVER)]


async def a_server_that_is_announced_just_then_is_not_removed() -> None:
    """By a look that found nothing there: dom0 serves on, and one more process of it begins to."""
    path = f"/local/domain/0/data/vchan/{CLIENT}/{PORT + 1}"
    listener = await xen.listen(0, CLIENT, PORT)
    standin.standin_write_meanwhile(path.encode())
    listener.close()
    assert nodes_of(0) == [str(CLIENT)]
    with xen.Store() as store:
        assert store.list(f"/local/domain/0/data/vchan/{CLIENT}") == [str(PORT + 1)]
        store.remove(path)


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
        only_announced_data_ports_are_cleared,
        nobody_there,
        a_client_waits_for_its_server,
        a_dead_servers_announcement_is_passed_over,
        a_port_is_free_once_its_client_came,
        a_guest_learns_of_its_peers_end_from_xenstore,
        dom0_learns_of_its_peers_end_from_the_hypervisor,
        a_guest_learns_of_an_end_though_xenstore_failed_meanwhile,
        a_listener_that_is_woken_without_end_says_so_and_the_next_one_serves,
        a_refused_client_tries_again_though_no_node_changes,
        a_listener_whose_accept_is_closed_frees_its_ring_after_the_thread,
        a_pump_notices_it_too,
        grants_that_are_used_up_are_an_error_and_no_crash,
        a_channel_for_which_no_descriptor_is_left_leaves_nothing,
        the_service_looks_for_an_answer_no_longer_than_others_can_wait,
        a_listener_that_is_closed_leaves_nothing,
        impossible_numbers,
        thirty_domains_that_come_and_go_leave_xenstore_as_it_was,
        what_a_peer_that_lives_is_shown_stays,
        a_server_that_is_announced_just_then_is_not_removed,
        the_store,
    )
}


async def run(case: str) -> None:
    with trio.fail_after(60):
        await CASES[case]()
    left = standin.standin_in_use()
    assert left == 0, f"{left} grants, ports and nodes were not given back"


def in_a_fork(case: str) -> tuple[int, str]:
    """The exit status, and what was said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                trio.run(run, case)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(ended), said.read().decode(errors="replace")


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(in_a_fork(line.strip())), flush=True)


if __name__ == "__main__":
    main()
