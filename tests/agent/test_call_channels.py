"""The channels over which calls go: made when dom0 says so, idle between calls, never two uses."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_agent.calls import channels
from pedos_agent.calls.channels import Channels
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel
from pedos_vchan.ready import ready
from pedos_vchan.stream import VchanStream
from pedos_vchan.transport import Listener, SharedMemory

from tests.patience import PATIENCE

PORT = 40
ORDERS = (12, 12)


class Side:
    """The channels of one VM, and what it has told dom0."""

    def __init__(self, folder: Path, domain: int) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.channels = Channels(SharedMemory(folder, domain), self._tell)
        self._news = trio.Event()

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        self.told.append((method, params))
        self._news.set()

    async def closed(self) -> dict[str, Any]:
        """Waits for its first notice."""
        with trio.fail_after(PATIENCE):
            await self._news.wait()
        assert [method for method, _ in self.told] == ["channel.closed"]
        return self.told[0][1]


class Pair:
    """The caller's VM (domain 2) and the service's (domain 3)."""

    def __init__(self, folder: Path) -> None:
        self.caller, self.service = Side(folder, 2), Side(folder, 3)

    async def open(self, port: int = PORT) -> tuple[Channel, Channel]:
        """A channel, in use at both ends."""
        await self.caller.channels.listen(3, port, ORDERS)
        theirs = await self.service.channels.connect(2, port)
        with trio.fail_after(PATIENCE):
            return await self.caller.channels.take(3, port), theirs

    def rest(self, *both: Channel) -> None:
        """Both ends give it back."""
        self.caller.channels.give_back(both[0])
        self.service.channels.give_back(both[1])


@pytest.fixture
async def pair(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    await nursery.start(made.caller.channels.run)
    await nursery.start(made.service.channels.run)
    yield made


async def test_a_channel_serves_one_call_after_the_other(pair: Pair) -> None:
    first = await pair.open()
    for _ in range(3):
        pair.rest(*first)
        assert pair.caller.channels.idle() == pair.service.channels.idle() == (PORT,)
        again = (
            await pair.caller.channels.take(3, PORT),
            await pair.service.channels.take(2, PORT),
        )
        assert again == first
        assert pair.caller.channels.idle() == ()
    assert not pair.caller.told and not pair.service.told


async def test_no_two_calls_use_one_channel(pair: Pair) -> None:
    await pair.open()
    with pytest.raises(CallError, match="no channel to domain 3 at port 40"):
        await pair.caller.channels.take(3, PORT)
    with pytest.raises(CallError, match="port 40 is in use"):
        await pair.caller.channels.listen(3, PORT, ORDERS)
    with pytest.raises(CallError, match="port 40 is in use"):
        await pair.service.channels.connect(2, PORT)


async def test_only_an_idle_channel_is_taken_without_waiting(pair: Pair) -> None:
    taking = pair.caller.channels.take_idle
    assert taking(3, PORT) is None, "there is none"
    await pair.caller.channels.listen(3, PORT, ORDERS)
    assert taking(3, PORT) is None, "it is only expected"
    theirs = await pair.service.channels.connect(2, PORT)
    with trio.fail_after(PATIENCE):
        ours = await pair.caller.channels.take(3, PORT)
    assert taking(3, PORT) is None, "it is in use"
    pair.rest(ours, theirs)
    assert taking(4, PORT) is None, "it is another VM's"
    assert taking(3, PORT) is ours
    assert pair.caller.channels.idle() == ()
    with pytest.raises(CallError, match="no channel to domain 3 at port 40"):
        await pair.caller.channels.take(3, PORT)
    pair.caller.channels.close(PORT)
    assert taking(3, PORT) is None and not ours.closed
    pair.caller.channels.give_back(ours)
    assert ours.closed


async def test_a_channel_is_that_of_one_other_vm(pair: Pair) -> None:
    pair.rest(*await pair.open())
    with pytest.raises(CallError, match="no channel to domain 4 at port 40"):
        await pair.caller.channels.take(4, PORT)


async def test_the_other_s_end_ends_an_idle_channel_and_is_told(pair: Pair) -> None:
    pair.rest(*await pair.open())
    pair.service.channels.close(PORT)
    assert await pair.caller.closed() == {
        "port": PORT,
        "reason": "the other VM has closed it, or has ended",
    }
    assert pair.caller.channels.idle() == pair.service.channels.idle() == ()
    assert not pair.service.told, "dom0 has said so itself"


async def test_what_is_no_more_use_is_closed_and_told(pair: Pair) -> None:
    ours, theirs = await pair.open()
    pair.service.channels.give_back(theirs)
    pair.caller.channels.give_back(ours, "the other end broke the rules")
    assert pair.caller.told == [
        ("channel.closed", {"port": PORT, "reason": "the other end broke the rules"})
    ]
    assert ours.closed
    await pair.service.closed()


async def test_one_in_use_is_closed_after_its_use(pair: Pair) -> None:
    ours, theirs = await pair.open()
    pair.caller.channels.close(PORT)
    assert not ours.closed
    pair.caller.channels.give_back(ours)
    assert ours.closed and not pair.caller.told
    pair.service.channels.give_back(theirs)
    await pair.service.closed()


async def test_the_next_call_may_begin_before_the_other_side_knows_of_it(pair: Pair) -> None:
    ours, theirs = await pair.open()
    pair.rest(ours, theirs)
    await VchanStream(await pair.caller.channels.take(3, PORT)).send_all(b"call")
    await trio.testing.wait_all_tasks_blocked()
    assert pair.service.channels.idle() == (PORT,)
    stream = VchanStream(await pair.service.channels.take(2, PORT))
    assert await stream.receive_some() == b"call"


async def test_a_vm_that_does_not_connect_is_not_waited_for(
    pair: Pair, autojump_clock: trio.abc.Clock
) -> None:
    await pair.caller.channels.listen(3, PORT, ORDERS)
    with pytest.raises(CallError, match="did not connect within 10 s"):
        await pair.caller.channels.take(3, PORT)
    assert (await pair.caller.closed())["port"] == PORT
    assert pair.caller.channels.idle() == ()


async def test_without_dom0_a_vm_is_awaited_no_longer_than_one_that_was_told(
    pair: Pair, autojump_clock: trio.abc.Clock
) -> None:
    _, theirs = await pair.open(PORT + 1)  # a channel that is there goes on
    await pair.caller.channels.listen(3, PORT, ORDERS)
    began = trio.current_time()
    pair.caller.channels.alone()
    with pytest.raises(CallError, match="dom0's service ended before the other VM had connected"):
        await pair.caller.channels.take(3, PORT)
    assert trio.current_time() - began == channels.ALONE_SECONDS
    assert not theirs.closed


async def test_without_dom0_a_caller_hears_at_once_that_no_service_was_begun(pair: Pair) -> None:
    pair.rest(*await pair.open())
    ours = await pair.caller.channels.take(3, PORT)
    pair.service.channels.alone()  # it was not told of the call
    pair.caller.channels.alone()
    with trio.fail_after(PATIENCE):
        assert await VchanStream(ours).receive_some() == b""


async def test_without_dom0_a_service_hears_soon_that_no_call_was_granted(
    pair: Pair, autojump_clock: trio.abc.Clock
) -> None:
    pair.rest(*await pair.open())
    theirs = await pair.service.channels.take(2, PORT)
    began = trio.current_time()
    pair.service.channels.alone()
    pair.caller.channels.alone()  # it was not answered; or the answer is being read
    assert pair.caller.channels.idle() == (PORT,)
    await trio.sleep(channels.ALONE_SECONDS)
    await trio.testing.wait_all_tasks_blocked()
    assert pair.caller.channels.idle() == ()
    assert await VchanStream(theirs).receive_some() == b""
    assert trio.current_time() - began == channels.ALONE_SECONDS


async def test_a_vm_that_does_not_listen_is_not_waited_for(
    pair: Pair, autojump_clock: trio.abc.Clock
) -> None:
    with pytest.raises(CallError, match="no channel to the calling VM: No such file"):
        await pair.service.channels.connect(2, PORT)
    await pair.open()


class Stuck:
    """A transport that makes nothing, as when the hypervisor or its store hangs."""

    async def listen(self, *_: object) -> Listener:
        await trio.sleep_forever()

    async def connect(self, *_: object) -> Channel:
        await trio.sleep_forever()


@pytest.mark.parametrize("way", ["listen", "connect"])
async def test_a_channel_that_waits_for_others_is_given_up_in_the_same_time(
    way: str, nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    stuck = Channels(Stuck(), lambda *_: None)  # type: ignore[arg-type]
    await nursery.start(stuck.run)
    failures: list[CallError] = []

    async def make(port: int) -> None:
        with pytest.raises(CallError, match="within 10 s") as failed:
            await (stuck.connect(3, port) if way == "connect" else stuck.listen(3, port, ORDERS))
        failures.append(failed.value)

    begun = trio.current_time()
    async with trio.open_nursery() as making:
        for port in range(PORT, PORT + 3 * channels.MAKING_MAX):
            making.start_soon(make, port)
    assert trio.current_time() - begun == pytest.approx(channels.SETUP_SECONDS)
    assert len(failures) == 3 * channels.MAKING_MAX
    assert stuck.idle() == ()


async def test_who_stops_waiting_for_a_channel_leaves_none(
    pair: Pair, nursery: trio.Nursery, tmp_path: Path
) -> None:
    await pair.caller.channels.listen(3, PORT, ORDERS)
    with trio.CancelScope() as scope:
        scope.cancel()
        await pair.caller.channels.take(3, PORT)
    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert pair.caller.channels.idle() == () and not pair.caller.told
    assert os.listdir(tmp_path) == []
    await pair.open()


async def test_dom0_may_take_back_that_a_vm_is_awaited(pair: Pair, tmp_path: Path) -> None:
    await pair.caller.channels.listen(3, PORT, ORDERS)
    pair.caller.channels.close(PORT)
    await trio.testing.wait_all_tasks_blocked()
    assert os.listdir(tmp_path) == [] and not pair.caller.told


async def test_a_caller_hears_that_dom0_has_taken_it_back(
    pair: Pair, nursery: trio.Nursery
) -> None:
    await pair.caller.channels.listen(3, PORT, ORDERS)

    async def take_back() -> None:
        pair.caller.channels.close(PORT)

    nursery.start_soon(take_back)
    with pytest.raises(CallError, match="dom0 gave it up before the other VM had connected"):
        await pair.caller.channels.take(3, PORT)


async def test_there_are_so_many_channels_and_no_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PORTS_MAX", 2)
    await pair.caller.channels.listen(3, PORT, ORDERS)
    await pair.caller.channels.listen(3, PORT + 1, ORDERS)
    with pytest.raises(CallError, match="2 channels for calls, which is the most"):
        await pair.caller.channels.listen(3, PORT + 2, ORDERS)


async def test_an_agent_that_ends_closes_what_is_idle(tmp_path: Path) -> None:
    ready()  # it stays as long as the event loop
    before = len(os.listdir("/proc/self/fd"))
    pair = Pair(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(pair.caller.channels.run)
        await nursery.start(pair.service.channels.run)
        pair.rest(*await pair.open())
        ours, theirs = await pair.open(PORT + 1)
        await pair.caller.channels.listen(3, PORT + 2, ORDERS)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):  # they end before calls that are cut off
            await trio.testing.wait_all_tasks_blocked()
        pair.rest(ours, theirs)
    assert ours.closed and theirs.closed
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) <= before
