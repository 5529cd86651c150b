"""Many descriptors without a task each: whose turn it is, and what a turn may do to others."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import traceback

import pytest
import trio
import trio.testing
from pedos_vchan import running
from pedos_vchan.ready import ready

from tests.patience import PATIENCE


async def test_each_has_its_turn_until_it_is_removed() -> None:
    pairs = [socket.socketpair() for _ in range(40)]  # more than have it at once
    heard: dict[int, bytes] = {}

    def hear(number: int) -> None:
        heard[number] = pairs[number][0].recv(10)
        ready().remove(pairs[number][0].fileno())

    for number, (ours, theirs) in enumerate(pairs):
        ready().add(ours.fileno(), lambda number=number: hear(number))  # type: ignore[misc]
        theirs.send(b"%d" % number)
    with trio.fail_after(PATIENCE):
        while len(heard) < len(pairs):
            await trio.lowlevel.checkpoint()
    assert heard == {number: b"%d" % number for number in range(len(pairs))}
    for _, theirs in pairs:
        theirs.send(b"again")
    await trio.testing.wait_all_tasks_blocked()
    assert all(len(said) < 3 for said in heard.values())
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_a_turn_may_remove_another_one_that_is_ready() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    turns: list[int] = []

    def first_only(number: int) -> None:
        turns.append(number)
        for ours, _ in pairs:
            ready().remove(ours.fileno())

    for number, (ours, theirs) in enumerate(pairs):
        ready().add(ours.fileno(), lambda number=number: first_only(number))  # type: ignore[misc]
        theirs.close()
    with trio.fail_after(PATIENCE):
        while not turns:
            await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert len(turns) == 1
    for ours, _ in pairs:
        ours.close()


@pytest.mark.parametrize("closes", [False, True])
async def test_a_mistake_ends_the_turns_of_that_one_alone(
    caplog: pytest.LogCaptureFixture, closes: bool
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    turns: list[bytes] = []

    def fail() -> None:
        turns.append(b"failed")
        if closes:
            pairs[0][0].close()
        raise LookupError("a mistake")

    ready().add(pairs[0][0].fileno(), fail)
    ready().add(pairs[1][0].fileno(), lambda: turns.append(pairs[1][0].recv(10)))
    pairs[0][1].send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    pairs[1][1].send(b"well")
    with trio.fail_after(PATIENCE):
        while len(turns) < 2:
            await trio.lowlevel.checkpoint()
    assert turns == [b"failed", b"well"]
    assert "a mistake" in caplog.text
    for each in pairs:
        each[0].close()
        each[1].close()


def test_a_loop_that_can_hear_of_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory is out; and it does not go on deaf."""

    def starve(*_: object) -> None:
        raise MemoryError

    async def main() -> None:
        monkeypatch.setattr(ready(), "_take_turns", starve)
        ours, theirs = socket.socketpair()
        with ours, theirs, trio.fail_after(PATIENCE):
            ready().add(ours.fileno(), lambda: None)
            theirs.send(b"x")
            await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError) as caught:
        trio.run(main)
    assert "MemoryError" in "".join(traceback.format_exception(caught.value))


# In a program


class Steps(trio.abc.Instrument):
    """How often tasks were woken."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


def test_a_turn_wakes_no_task_in_a_program() -> None:
    assert running.run(turns_without_a_task) == 0


async def turns_without_a_task() -> int:
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []
    task = trio.lowlevel.current_task()
    steps = Steps()

    def hear() -> None:
        heard.append(ours.recv(10))
        if len(heard) == 5:
            trio.lowlevel.remove_instrument(steps)
            trio.lowlevel.reschedule(task)
        else:
            threading.Timer(0.01, theirs.send, (b"x",)).start()  # when the loop waits again

    ready().add(ours.fileno(), hear)
    await trio.sleep(0.01)  # the others wait by then
    trio.lowlevel.add_instrument(steps)
    theirs.send(b"x")
    with ours, theirs:
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
        ready().remove(ours.fileno())
    assert heard == [b"x"] * 5
    return steps.count


def test_tasks_and_turns_have_their_time_beside_each_other() -> None:
    running.run(all_kinds_of_waits)


async def all_kinds_of_waits() -> None:
    endless, never = socket.socketpair()
    never.send(b"x")
    turns: list[int] = []
    ready().add(endless.fileno(), lambda: turns.append(0))  # it reads nothing, and comes again
    ours, theirs = trio.socket.socketpair()
    with trio.fail_after(PATIENCE), endless, never, ours, theirs:
        await trio.sleep(0.01)
        await trio.to_thread.run_sync(lambda: None)
        await theirs.send(b"y")
        assert await ours.recv(10) == b"y"
        assert turns
        ready().remove(endless.fileno())
        before = trio.current_time()
        await trio.sleep(0.05)  # nothing else happens
        assert trio.current_time() - before >= 0.05
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert await anext(signals) == signal.SIGUSR1
        await trio.to_thread.run_sync(time.sleep, 0.01)


def test_a_turn_may_start_a_task() -> None:
    assert running.run(a_task_of_a_turn) == b"z"


async def a_task_of_a_turn() -> bytes:
    ours, theirs = socket.socketpair()
    said: list[bytes] = []

    async def hear() -> None:
        await trio.lowlevel.checkpoint()
        said.append(ours.recv(10))
        nursery.cancel_scope.cancel()

    def begin() -> None:
        ready().remove(ours.fileno())
        nursery.start_soon(hear)

    with ours, theirs, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            ready().add(ours.fileno(), begin)
            theirs.send(b"z")
            await trio.sleep_forever()
    return said[0]
