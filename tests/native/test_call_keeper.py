"""A call that follows its service's keeper: what of its words the call's thread takes, and that it
leaves all others, whatever they are, to be read by others."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from pedos_protocol.keeper_link import (
    PACKET_MAX,
    SIGNAL_MAX,
    STATUS_MAX,
    Connected,
    Ended,
    Finished,
    ForUser,
    NotFound,
    Problem,
    Run,
    Spawned,
    Waiting,
    build,
)
from pedos_vchan._native import lib
from pedos_vchan.call_crew import crew
from pedos_vchan.call_pump import CallEnd, CallPump, EventKind
from pedos_vchan.call_pump import Event as Told

from tests.patience import PATIENCE

from .calling_pair import CALL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pedos_vchan.channel import Channel

    from .conftest import Pairs

ORDER = 12
SPAWNED = build(Spawned(False, False, False))
CONNECTED = build(Connected(False, False, False))
GONE = ("problem", 125, "the keeper of the service has ended")

#: Words of a keeper, and what a hostile one may say in their place.
OTHERS = {
    "options": build(Spawned(False, False, True)),
    "connected without a socket": CONNECTED,
    "connected, with options": build(Connected(True, False, False)),
    "waiting": build(Waiting("for a session")),
    "another user": build(ForUser("root")),
    "not found": build(NotFound("no such service")),
    "problem": build(Problem("no")),
    "the agent's word": build(Run("0" * 32, "a.B", "+", "work", "", is_forced=False)),
    "half": SPAWNED[:-1],
    "more": SPAWNED + b"\xc2",
    "another length": b"\xdc\x00\x04" + SPAWNED[1:],
    "as much as there may be": bytes(PACKET_MAX),
    "too much": b"\x94" * (PACKET_MAX + 1),
    "nothing": b"",
}
LAST = OTHERS | {
    "spawned again": SPAWNED,
    "half an end": build(Ended("exited", 200))[:-1],
    "an end and more": build(Ended("exited", 0)) + b"\x00",
    "no status": build(Ended("exited", 0))[:-1],
    "status 256": build(Ended("exited", 0))[:-1] + b"\xcd\x01\x00",
    "a status in another form": build(Ended("exited", 0))[:-1] + b"\xcc\x05",
    "status -1": build(Ended("exited", 0))[:-1] + b"\xff",
    "signal 0": build(Ended("signalled", 1))[:-1] + b"\x00",
    "signal 65": build(Ended("signalled", 1))[:-1] + b"\x41",
}


class Kept:
    """A service's side and its keeper; `caller` is run beside it."""

    def __init__(self, channels: tuple[Channel, Channel]) -> None:
        self._caller = CallPump(channels[0], "caller", CALL, self._hear("caller"))
        self.channel = channels[1]
        self.pump = CallPump(channels[1], "service", CALL, self._hear("service"))
        self.keeper, self.link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        self.streams = tuple(each.detach() for each in ours)
        self.service = list(theirs)
        for each in theirs:
            each.setblocking(False)
        self.events: list[tuple[str, Told]] = []
        self.unmet: list[int] = []
        self.ends: dict[str, CallEnd] = {}
        self._news = trio.Event()

    def _hear(self, side: str) -> Callable[[Told], None]:
        def hear(event: Told) -> None:
            self.events.append((side, event))
            self._tell()

        return hear

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def call(self) -> None:
        self.ends["caller"] = await self._caller.run(-1, -1, -1)
        self._tell()

    def begin(self, *, asked: bool = True) -> None:
        self.pump.begin(
            *(*self.streams, -1),
            then=self._over,
            keeper=self.link,
            otherwise=self._otherwise if asked else None,
        )

    def _over(self, end: CallEnd) -> None:
        self.ends["service"] = end
        self._tell()

    def _otherwise(self, error: int) -> None:
        self.unmet.append(error)
        self._tell()

    async def told(self, side: str, event: Told) -> None:
        while (side, event) not in self.events:
            await self._news.wait()

    async def is_unmet(self) -> int:
        while not self.unmet:
            await self._news.wait()
        return self.unmet.pop()

    async def over(self) -> tuple[CallEnd, CallEnd]:
        while len(self.ends) < 2:
            await self._news.wait()
        return self.ends["caller"], self.ends["service"]

    def leave(self) -> None:
        """The service ends."""
        for each in self.service:
            each.close()

    def close(self) -> None:
        self.leave()
        self.keeper.close()
        self.link.close()


@pytest.fixture
async def kept(pairs: Pairs) -> AsyncIterator[Kept]:
    """A service's side that is called."""
    made = Kept(await pairs.channels(ORDER, ORDER))
    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.call)
                yield made
                nursery.cancel_scope.cancel()
    finally:
        made.close()


def is_open(kept: Kept) -> bool:
    """Whether the service has its streams still."""
    try:
        return kept.service[0].recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True


@pytest.mark.parametrize("word", [Ended("exited", 3), Ended("signalled", 9)])
async def test_a_call_ends_as_its_keeper_says(kept: Kept, word: Ended) -> None:
    kept.begin()
    kept.keeper.send(SPAWNED)
    await kept.told("service", Told(EventKind.STARTED))
    await kept.told("caller", Told(EventKind.STARTED))
    kept.keeper.send(build(word))
    status = word.status + (128 if word.kind == "signalled" else 0)
    await kept.told("caller", Told(EventKind.MAIN_EXITED, status))
    assert not kept.ends  # something of it still has its stdout
    kept.leave()
    for end in await kept.over():
        assert (end.kind, end.status, end.text, end.is_reusable) == (*word, "", True)
    assert not kept.unmet
    kept.link.setblocking(False)
    with pytest.raises(BlockingIOError):
        kept.link.recv(1)  # all that was said was taken


async def test_every_end_of_a_main_process_is_known(pairs: Pairs) -> None:
    """In the form that this version's keepers say it."""
    ends = [Ended("exited", each) for each in range(STATUS_MAX + 1)]
    ends += [Ended("signalled", each) for each in range(1, SIGNAL_MAX + 1)]
    channels = await pairs.channels(ORDER, ORDER)
    with trio.fail_after(PATIENCE):
        for each in ends:
            kept = Kept(channels)
            kept.keeper.send(SPAWNED)
            kept.keeper.send(build(each))
            kept.leave()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept.call)
                kept.begin()
                caller, _ = await kept.over()
            assert (caller.kind, caller.status) == each
            kept.close()


@pytest.mark.parametrize("word", OTHERS.values(), ids=OTHERS)
async def test_any_other_first_word_is_left_to_be_read(kept: Kept, word: bytes) -> None:
    kept.keeper.send(word)
    kept.begin()
    assert await kept.is_unmet() == 0
    assert kept.link.recv(PACKET_MAX + 1) == word
    assert is_open(kept)
    # The call is begun anew, as a service that the agent has heard of.
    kept.begin(asked=False)
    kept.keeper.send(build(Ended("exited", 1)))
    kept.leave()
    caller, service = await kept.over()
    assert (caller.kind, caller.status, service.is_reusable) == ("exited", 1, True)
    assert ("service", Told(EventKind.STARTED)) not in kept.events


async def test_a_word_with_a_descriptor_is_left_with_it(kept: Kept) -> None:
    read, write = os.pipe()
    socket.send_fds(kept.keeper, [SPAWNED], [write])
    os.close(write)
    kept.begin()
    assert await kept.is_unmet() == 0
    word, passed, _, _ = socket.recv_fds(kept.link, PACKET_MAX, 4)
    assert word == SPAWNED
    assert len(passed) == 1
    os.close(passed[0])
    assert os.read(read, 1) == b""  # and nobody else has it
    os.close(read)


async def test_a_service_that_is_a_socket_takes_the_place_of_the_streams(kept: Kept) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(kept.keeper, [CONNECTED], [theirs.fileno()])
        theirs.close()
        kept.begin()
        await kept.told("service", Told(EventKind.STARTED))
        await kept.told("caller", Told(EventKind.STARTED))
        assert not is_open(kept)  # what was made for it
        assert await trio.to_thread.run_sync(ours.recv, 1) == b""  # the caller gives it nothing
        assert not kept.ends
        assert await trio.to_thread.run_sync(kept.keeper.recv, 10) == build(Finished())
        kept.keeper.close()  # that is the end of its part
        ours.sendall(b"some words")
        ours.shutdown(socket.SHUT_WR)
        for end in await kept.over():
            assert (end.kind, end.status, end.text, end.stdout) == ("exited", 0, "", 10)
            assert end.is_reusable


@pytest.mark.parametrize("count", [2, 3])
async def test_a_service_s_socket_that_does_not_come_alone_is_against_the_protocol(
    kept: Kept, count: int
) -> None:
    read, write = os.pipe()
    socket.send_fds(kept.keeper, [CONNECTED], [write] * count)
    os.close(write)
    kept.begin()
    assert await kept.is_unmet() == errno.EPROTO
    assert os.read(read, 1) == b""  # all of them are closed
    os.close(read)
    assert is_open(kept)


async def test_a_service_that_is_no_stream_is_a_problem(kept: Kept) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    with ours, theirs:
        socket.send_fds(kept.keeper, [CONNECTED], [theirs.fileno()])
        kept.begin()
        while "service" not in kept.ends:
            await kept._news.wait()
    assert (kept.ends["service"].kind, kept.ends["service"].status) == ("problem", 125)
    assert not is_open(kept)


async def test_a_service_that_is_a_socket_can_be_ended(kept: Kept) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(kept.keeper, [CONNECTED], [theirs.fileno()])
        kept.begin()
        await kept.told("service", Told(EventKind.STARTED))
        kept.pump.exit("problem", 125, "ended by dom0's user", now=True)
        for end in await kept.over():
            assert (end.kind, end.text) == ("problem", "ended by dom0's user")


async def test_a_keeper_that_hangs_up_is_left_to_be_found_out(kept: Kept) -> None:
    kept.begin()
    kept.keeper.close()
    assert await kept.is_unmet() == 0
    assert kept.link.recv(1) == b""
    assert is_open(kept)


async def test_a_keeper_that_leaves_unread_what_it_was_asked_is_known(kept: Kept) -> None:
    """The kernel says that once alone."""
    kept.link.send(b"run this")
    kept.begin()
    kept.keeper.close()
    assert await kept.is_unmet() == errno.ECONNRESET
    assert kept.link.recv(1) == b""


async def test_a_call_without_its_keeper_may_be_begun_again(kept: Kept) -> None:
    kept.keeper.send(build(NotFound("no such service")))
    kept.begin()
    assert await kept.is_unmet() == 0
    for each in kept.streams:
        os.close(each)
    kept.pump.exit("not_found", 127, "no such service")
    kept.pump.begin(-1, -1, -1, then=kept._over)
    caller, _ = await kept.over()
    assert (caller.kind, caller.text) == ("not_found", "no such service")
    assert ("caller", Told(EventKind.STARTED)) not in kept.events


@pytest.mark.parametrize("word", LAST.values(), ids=LAST)
async def test_any_other_last_word_is_the_keeper_s_end(kept: Kept, word: bytes) -> None:
    kept.begin()
    kept.keeper.send(SPAWNED)
    await kept.told("service", Told(EventKind.STARTED))
    kept.keeper.send(word)
    caller, service = await kept.over()
    assert (caller.kind, caller.status, caller.text) == GONE
    assert service.is_reusable
    assert not is_open(kept)
    assert kept.link.recv(PACKET_MAX + 1) == word  # whatever that is for


async def test_a_last_word_with_a_descriptor_is_left_with_it(kept: Kept) -> None:
    read, write = os.pipe()
    kept.begin()
    kept.keeper.send(SPAWNED)
    await kept.told("service", Told(EventKind.STARTED))
    socket.send_fds(kept.keeper, [build(Ended("exited", 0))], [write])
    os.close(write)
    caller, _ = await kept.over()
    assert (caller.kind, caller.status, caller.text) == GONE
    kept.link.close()
    assert os.read(read, 1) == b""
    os.close(read)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_keeper_that_ends_ends_its_service(kept: Kept, asked: bool) -> None:
    kept.begin(asked=asked)
    if asked:
        kept.keeper.send(SPAWNED)
    await kept.told("caller", Told(EventKind.STARTED)) if asked else None
    kept.link.send(b"a signal")
    kept.keeper.close()
    caller, service = await kept.over()
    assert (caller.kind, caller.status, caller.text) == GONE
    assert service.is_reusable
    assert not is_open(kept)


async def test_what_is_killed_before_the_first_word_was_never_started(kept: Kept) -> None:
    kept.begin()
    kept.pump.exit("problem", 125, "it took too long", now=True)
    caller, service = await kept.over()
    assert (caller.kind, caller.text) == ("problem", "it took too long")
    assert service.is_reusable
    assert EventKind.STARTED not in {event.kind for _, event in kept.events}
    assert not is_open(kept)
    kept.keeper.send(SPAWNED)
    assert kept.link.recv(PACKET_MAX) == SPAWNED  # nobody has taken it


async def test_an_abort_before_the_first_word_is_as_well(kept: Kept) -> None:
    kept.begin()
    kept.pump.abort("the agent ends")
    caller, _ = await kept.over()
    assert (caller.kind, caller.text) == ("problem", "the agent ends")
    assert not is_open(kept)


async def test_a_call_can_be_cancelled_before_the_first_word(kept: Kept) -> None:
    kept.begin()
    kept.pump.cancel()
    caller, service = await kept.over()
    assert (caller.kind, service.kind, service.reason) == ("lost", "lost", "cancelled")
    assert not is_open(kept)


async def test_an_end_that_is_known_early_waits_for_the_service(kept: Kept) -> None:
    kept.begin()
    kept.pump.exit("exited", 7)
    kept.keeper.send(SPAWNED)
    await kept.told("service", Told(EventKind.STARTED))
    kept.service[1].send(b"words")
    kept.leave()
    caller, _ = await kept.over()
    assert (caller.kind, caller.status, caller.stdout) == ("exited", 7, 5)


async def test_orders_and_words_at_once_end_in_one_way_or_the_other(pairs: Pairs) -> None:
    """Whatever comes first: nothing hangs, and no stream is left open."""
    dice = random.Random(8)
    channels = await pairs.channels(ORDER, ORDER)
    words = [SPAWNED, build(Ended("exited", 0)), *list(LAST.values())[:12:3], None]
    with trio.fail_after(PATIENCE):
        for _ in range(150):
            kept = Kept(channels)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kept.call)
                kept.begin()
                for step in dice.sample(["word", "word", "order", "order", "leave"], 5):
                    word = dice.choice(words)
                    if step == "leave":
                        kept.leave()
                    elif step == "order":
                        kept.pump.exit("exited", 5, now=dice.random() < 0.5)
                    elif word is None:
                        kept.keeper.shutdown(socket.SHUT_WR)
                        break
                    else:
                        kept.keeper.send(word)
                    await trio.lowlevel.checkpoint()
                kept.leave()
                kept.keeper.close()
                while "service" not in kept.ends and not kept.unmet:
                    await kept._news.wait()
                if kept.unmet:
                    kept.begin(asked=False)
                caller, service = await kept.over()
            assert caller.is_reusable
            assert service.is_reusable
            kept.close()


def test_streams_that_nobody_was_told_of_are_closed(pairs: Pairs) -> None:
    """The event loop ends with the news on their way."""
    made: list[Kept] = []

    async def main() -> None:
        kept = Kept(await pairs.channels(ORDER, ORDER))
        made.append(kept)
        kept.begin()
        kept.keeper.send(OTHERS["waiting"])
        assert select.select([lib.pv_crew_fd(crew()._native)], [], [], PATIENCE)[0]

    trio.run(main)
    (kept,) = made
    assert not is_open(kept)
    assert not kept.unmet
    kept.close()
